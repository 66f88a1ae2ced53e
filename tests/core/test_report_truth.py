"""A report never says that nothing changed where plain generate answers otherwise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from gold import SUPPRESSED, Against, disturbed

from lvlm_guard import (
    AttentionCapture,
    AttentionEdit,
    Guard,
    HiddenEdit,
    InputEdit,
    Insert,
    NoEffectWarning,
    Search,
    hookimpl,
)
from lvlm_guard.testing import tiny

SETTINGS = {
    "max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED, "output_logits": True,
    "return_dict_in_generate": True,
}  # fmt: skip


@dataclass(frozen=True)
class Edits:
    """Edit inputs and layers as the values say."""

    name: ClassVar[str] = "edits"
    inputs: tuple[Any, ...] = ()
    layers: tuple[Any, ...] = ()
    scores: tuple[Any, ...] = ()

    @hookimpl
    def edit_inputs(self, gen):
        return self.inputs

    @hookimpl
    def hidden(self, gen):
        return self.layers

    @hookimpl
    def attention(self, gen):
        return self.scores


def twice(hidden, view):
    return hidden * 2


def same(hidden, view):
    return hidden * 1


CHANGES = {
    "tokens": Edits(inputs=(InputEdit(tokens=(Insert((7, 8)),)),)),
    "pixels": Edits(inputs=(InputEdit(pixels=disturbed),)),
    "decoder": Edits(layers=(HiddenEdit("mlp", twice),)),
    "vision": Edits(layers=(HiddenEdit("mlp", twice, tower="vision"),)),
    "attention": Edits(scores=(AttentionEdit((0.0, 1.0), "add", 3.0),)),
}
STILL = {
    "tokens": Edits(inputs=(InputEdit(tokens=(Insert(per_row=((), ())),)),)),
    "pixels": Edits(inputs=(InputEdit(pixels=lambda pixels, generator: pixels * 1),)),
    "decoder": Edits(layers=(HiddenEdit("mlp", same),)),
    "vision": Edits(layers=(HiddenEdit("mlp", same, tower="vision"),)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_an_edit_that_changed_something_is_reported_and_not_warned_about(kind):
    model, inputs = tiny("llava")
    guard = Guard(model, None, [CHANGES[kind]])
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        output = guard.generate(**inputs, **SETTINGS)
    plain = model.generate(**inputs, **SETTINGS)
    assert not torch.equal(output.logits[0], plain.logits[0]), "no power"
    (entry,) = guard.report.strategies
    assert (entry.had_effect, entry.tokens_changed) == (True, None)


@pytest.mark.parametrize("kind", STILL)
def test_an_edit_that_changed_nothing_is_warned_about_and_is_plain_generate(kind):
    model, inputs = tiny("llava")
    guard = Guard(model, None, [STILL[kind]])
    with pytest.warns(NoEffectWarning, match="'edits' changed no"):
        output = guard.generate(**inputs, **SETTINGS)
    plain = model.generate(**inputs, **SETTINGS)
    assert all(torch.equal(*pair) for pair in zip(output.logits, plain.logits, strict=True))
    (entry,) = guard.report.strategies
    assert (entry.had_effect, entry.tokens_changed) == (False, 0)


@dataclass(frozen=True)
class Worst:
    """Choose the worst token each time."""

    name: ClassVar[str] = "worst"

    @hookimpl
    def search(self, gen):
        yield Search(self._run)

    def _run(self, loop):
        for _ in range(loop.limit):
            loop.append(loop.logits().argmin(-1))
        return loop.generated


def test_a_search_is_reported():
    model, inputs = tiny("llava")
    guard = Guard(model, None, [Worst()])
    guard.generate(**inputs, max_new_tokens=3)
    (entry,) = guard.report.strategies
    assert (entry.had_effect, entry.tokens_changed) == (True, None)


@dataclass(frozen=True)
class Stronger(Against):
    """A contrast whose branch is edited inside."""

    @hookimpl
    def hidden(self, gen):
        return [HiddenEdit("mlp", twice, branch=self.kind)]


@dataclass(frozen=True)
class Meddles:
    """Edit a branch of another strategy."""

    name: ClassVar[str] = "meddles"

    @hookimpl
    def hidden(self, gen):
        return [HiddenEdit("mlp", twice, branch="noised")]


@dataclass(frozen=True, eq=False)
class Watches:
    """Look at attention, and count where generate's best token is not main's."""

    name: ClassVar[str] = "watches"

    @hookimpl
    def attention(self, gen):
        return [AttentionCapture("seen", (0, 1), lambda chances, view: chances.sum(-1))]

    @hookimpl
    def observe(self, gen):
        changed = int((gen.logits().argmax(-1) != gen.combined.argmax(-1)).sum())
        gen.results["changed"] = gen.results.get("changed", 0) + changed


def report_of(*stack, **settings):
    model, inputs = tiny("llava")
    guard = Guard(model, None, list(stack))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        guard.generate(**inputs, **SETTINGS, **settings)
    return guard.report


def test_edits_of_the_own_branch_leave_the_count_exact():
    report = report_of(Stronger(), Watches())
    assert report.results["changed"] > 0, "no power"
    assert report.strategies[0].tokens_changed == report.results["changed"]


def test_edits_of_the_branch_of_another_strategy_are_not_counted_as_none():
    meddling = report_of(Against(), Meddles()).strategies[1]
    assert (meddling.had_effect, meddling.tokens_changed) == (True, None)


def test_a_strategy_that_only_watches_is_not_warned_about():
    watching = report_of(Against(), Watches()).strategies[1]
    assert (watching.had_effect, watching.tokens_changed) == (False, 0)
