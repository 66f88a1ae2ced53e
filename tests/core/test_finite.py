"""Logits from which no token can be chosen are an error for every stack and mode, at whatever step and in whatever branch."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from lvlm_guard import (
    AttentionEdit,
    Branch,
    Guard,
    HiddenEdit,
    InputEdit,
    Mix,
    NonFiniteLogits,
    Readout,
    Search,
    hookimpl,
)
from lvlm_guard.arithmetic.finiteness import FinitenessCheck
from lvlm_guard.strategy.forward import Forward
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.prompt import Prompt
from lvlm_guard.testing import tiny
from lvlm_guard.testing.devices import FIRST, pretended

SETTINGS = {"max_new_tokens": 4, "min_new_tokens": 4}
MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "beams": {"do_sample": False, "num_beams": 2},
    "samples": {"do_sample": True, "num_return_sequences": 2},
}
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def llava():
    return tiny("llava", batch=2)


@dataclass(frozen=True)
class Does:
    """A strategy put together from values."""

    name: ClassVar[str] = "does"
    hook: str
    values: tuple[Any, ...] = ()

    def _yield(self, hook):
        return self.values if hook == self.hook else ()

    @hookimpl
    def edit_inputs(self, gen):
        return self._yield("edit_inputs")

    @hookimpl
    def branches(self, gen):
        return self._yield("branches")

    @hookimpl
    def attention(self, gen):
        return self._yield("attention")

    @hookimpl
    def hidden(self, gen):
        return self._yield("hidden")

    @hookimpl
    def readouts(self, gen):
        return self._yield("readouts")

    @hookimpl
    def search(self, gen):
        return self._yield("search")

    @hookimpl
    def observe(self, gen):
        pass


def draw_tokens(loop):
    while loop.generated.shape[1] < loop.limit:
        loop.append(loop.logits().argmax(-1))
    return loop.generated[:: loop.rows_per_request]


STACKS = {
    "edits hidden states": Does("hidden", (HiddenEdit("mlp", lambda hidden, view: hidden * 1.1),)),
    "edits attention": Does("attention", (AttentionEdit((0, 2), "add", 1.0),)),
    "reads layers": Does("readouts", (Readout((1,)),)),
    "edits inputs": Does("edit_inputs", (InputEdit(picture=None, pixels=lambda pixels, _: pixels * 0.5),)),
    "has an idle branch": Does("branches", (Branch("noise", pixels=lambda pixels, _: pixels * 0.0),)),
    "observes": Does("observe"),
    "searches": Does("search", (Search(draw_tokens, 2),)),
    "opera": {"name": "opera", "params": {"beams": 2, "candidates": 2}},
    "mixes": "vcd",
}


@contextmanager
def poisoned(model, value, call, *, row=None):
    """Let the head answer with a value in the rows of one call, counted from 0, and in all later ones."""
    calls = []

    def poison(_, __, logits):
        calls.append(1)
        if len(calls) <= call:
            return logits
        logits = logits.clone()
        logits[slice(None) if row is None else row] = value
        return logits

    handle = model.get_output_embeddings().register_forward_hook(poison)
    try:
        yield calls
    finally:
        handle.remove()


def generate(llava, stack, **settings):
    model, inputs = llava
    stack = [stack] if isinstance(stack, Does) else stack
    return Guard(model, None, stack, **settings.pop("guard", {})).generate(**inputs, **SETTINGS, **settings)


@pytest.mark.parametrize("call", [0, 2], ids=["prefill", "later"])
@pytest.mark.parametrize("stack", list(STACKS))
def test_nan_is_an_error_whatever_the_stack_does(llava, stack, call):
    with poisoned(llava[0], NAN, call), pytest.raises(NonFiniteLogits, match="plain generate"):
        generate(llava, STACKS[stack], do_sample=False)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("call", [0, 3])
def test_a_row_without_a_finite_best_logit_is_an_error_in_every_mode(llava, value, mode, call):
    torch.manual_seed(0)
    with poisoned(llava[0], value, call, row=1), pytest.raises(NonFiniteLogits, match="logits of the model"):
        generate(llava, STACKS["edits hidden states"], **MODES[mode])


@pytest.mark.filterwarnings("ignore::lvlm_guard.NoEffectWarning")
@pytest.mark.parametrize("executor", ["sequential", "batched"])
def test_a_branch_is_named(llava, executor):
    llava = copy.deepcopy(llava[0]), llava[1]  # no other test's poison was in its trial
    stack = STACKS["has an idle branch"]
    with poisoned(llava[0], NAN, 1000):  # a first batched decode tries the model with the hooks that it has
        generate(llava, stack, do_sample=False, guard={"executor": executor})
    with poisoned(llava[0], NAN, 1, row=-1), pytest.raises(NonFiniteLogits, match="branch 'noise'"):
        generate(llava, stack, do_sample=False, guard={"executor": executor})
    last = -1 if executor == "batched" else 1
    with (
        poisoned(llava[0], NAN, 3 if last == 1 else 2, row=last),
        pytest.raises(NonFiniteLogits, match="branch 'noise'"),
    ):
        generate(llava, stack, do_sample=False, guard={"executor": executor})


@pytest.mark.parametrize("stack", ["edits hidden states", "mixes"])
def test_single_tokens_may_be_removed(llava, stack):
    def remove(_, __, logits):
        return logits.index_fill(-1, torch.arange(60, 128), -INF)

    with llava[0].get_output_embeddings().register_forward_hook(remove):
        assert generate(llava, STACKS[stack], do_sample=False)[:, -4:].max() < 60


def test_nan_inside_the_layers_is_an_error(llava):
    for when in ("prefill", "decode"):
        stack = Does("hidden", (HiddenEdit("mlp", lambda hidden, _: hidden * NAN, (1, 2), when=when),))
        with pytest.raises(NonFiniteLogits):
            generate(llava, stack, do_sample=False)


def test_an_accelerator_is_asked_at_tokens_1_2_3_5_9_and_at_the_end():
    ids = torch.ones(1, 1, dtype=torch.long)
    gen = Generation(Prompt({}, ids, ids, ids > 1, False, None, None))
    with pretended() as waited:
        check, read_at = FinitenessCheck(), []
        for step in range(20):
            gen.forward = Forward(torch.zeros(1, 1, 4, device=FIRST), {}, step)
            before = len(waited)
            check.record(gen, None)
            read_at += [step] * (len(waited) > before)
        assert read_at == [0, 1, 2, 4, 8, 16]
        gen.forward = Forward(torch.full((1, 1, 4), NAN, device=FIRST), {}, 20)
        check.record(gen, None)
        with pytest.raises(NonFiniteLogits):
            check.check()


def test_a_mix_of_finite_logits_that_overflows_is_an_error(llava):
    @dataclass(frozen=True)
    class Overflows:
        name: ClassVar[str] = "overflows"

        @hookimpl
        def terms(self, gen):
            return [Mix("main", 3e38), Mix("main", 3e38)]

    model, inputs = llava
    with pytest.raises(NonFiniteLogits, match="combined logits"):
        Guard(model, None, [Overflows()]).generate(**inputs, **SETTINGS, do_sample=False)
