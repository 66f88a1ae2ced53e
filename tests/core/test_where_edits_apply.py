"""Functions of edits are called in the forwards, blocks of rows and layers they apply to, and nowhere else."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from lvlm_guard import AttentionEdit, Branch, Guard, HiddenEdit, InputError, PluginRejected, hookimpl
from lvlm_guard.strategy.edits import AttentionCapture
from lvlm_guard.testing import tiny

BRANCH = Branch("other", pixels=lambda pixels, _: pixels * 0.5, inside=True)
MODES = {
    "batched": ({}, {}),
    "sequential": ({"executor": "sequential"}, {}),
    "beams": ({}, {"num_beams": 2}),
    "no cache": ({"executor": "sequential"}, {"use_cache": False}),
}


@dataclass(frozen=True)
class Edits:
    name: ClassVar[str] = "edits"
    inside: tuple[Any, ...] = ()
    attends: tuple[Any, ...] = ()

    @hookimpl
    def branches(self, gen):
        return [BRANCH]

    @hookimpl
    def hidden(self, gen):
        return self.inside

    @hookimpl
    def attention(self, gen):
        return self.attends


@pytest.fixture(scope="module")
def llava():
    return tiny("llava", batch=2)


class Calls:
    """An edit that changes a little, and notes where it is called."""

    def __init__(self):
        self.views = []

    def __call__(self, values, view):
        layout = view.running.layout
        where = view.positions
        self.views.append((view.branch, layout.generated, view.layer, values.shape[0], bool(where.any())))
        return values * 1.01


def run(llava, strategy, mode):
    model, inputs = llava
    options, settings = MODES[mode]
    Guard(model, None, [strategy], **options).generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, **settings
    )


def check(calls, *, branch, when, layer, rows, decodes=3):
    assert {(key, at, count) for key, _, at, count, _ in calls.views} <= {(branch, layer, rows)}
    steps = {generated for _, generated, *_ in calls.views}
    assert steps == {"prefill": {0}, "decode": set(range(1, decodes + 1)), "both": set(range(decodes + 1))}[when]
    assert all(applies for *_, applies in calls.views)


@pytest.mark.parametrize("mode", ["batched", "sequential", "beams"])
@pytest.mark.parametrize("when", ["prefill", "decode", "both"])
@pytest.mark.parametrize("branch", ["main", "other"])
def test_edits_are_called_where_they_apply_and_nowhere_else(llava, mode, when, branch):
    rows = 4 if mode == "beams" else 2
    hidden, scores, other = Calls(), Calls(), Calls()
    place = {"branch": branch, "when": when}
    attends = [
        AttentionEdit((1, 2), scores, **place),
        *(AttentionEdit((1, 2), other, branch=key, queries="all") for key in ("main", "other")),
        *(AttentionCapture("mass", (0, 2), lambda values, _: values, branch=key) for key in ("main", "other")),
    ]
    sites = ("mlp", "attention", "residual")
    strategy = Edits(tuple(HiddenEdit(site, hidden, (2, 3), **place) for site in sites), tuple(attends))
    run(llava, strategy, mode)
    check(hidden, branch=branch, when=when, layer=2, rows=rows)
    check(scores, branch=branch, when=when, layer=1, rows=rows)
    assert {generated for _, generated, *_ in other.views} == {0, 1, 2, 3}


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("site", ["mlp", "residual", "embedding"])
def test_edits_of_the_image_are_not_called_where_no_image_runs(llava, mode, site):
    calls = Calls()
    run(llava, Edits((HiddenEdit(site, calls, (1, 2), positions="image"),)), mode)
    assert calls.views
    assert all(applies for *_, applies in calls.views)
    if mode != "no cache":
        assert {generated for _, generated, *_ in calls.views} == {0}


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_captures_observe_the_forwards_they_name_with_and_without_a_cache(llava, when):
    seen = {}
    for mode in ("sequential", "no cache"):
        seen[mode] = []

        def reduce(values, view, steps=seen[mode]):
            steps.append(view.running.layout.generated)
            return values

        run(llava, Edits(attends=(AttentionCapture("mass", (0, 1), reduce, when=when),)), mode)
    assert seen["sequential"] == ([0] if when == "prefill" else [1, 2, 3])
    assert set(seen["no cache"]) >= set(seen["sequential"])


@pytest.mark.parametrize(("field", "value"), list(itertools.product(
    ["site", "tower", "positions", "when"], ["nowhere", None, 1, ["mlp"]]
)))  # fmt: skip
def test_a_hidden_edit_that_would_apply_nowhere_is_refused(field, value):
    with pytest.raises(InputError, match=f"HiddenEdit.{field} cannot be"):
        HiddenEdit(**{"site": "mlp", "edit": lambda hidden, view: hidden, field: value})


@pytest.mark.parametrize(("field", "value"), list(itertools.product(
    ["keys", "queries", "when", "stage"], ["nowhere", None, 1, ["all"]]
)))  # fmt: skip
def test_an_attention_edit_that_would_apply_nowhere_is_refused(field, value):
    with pytest.raises(InputError, match=f"AttentionEdit.{field} cannot be"):
        AttentionEdit((0, 1), lambda scores, view: scores, **{field: value})


@pytest.mark.parametrize("wrong", [{"when": "decode"}, {"positions": "image"}, {"site": "embedding"}])
def test_a_vision_edit_has_neither_tokens_nor_decode_steps(wrong):
    with pytest.raises(InputError, match="In the vision tower"):
        HiddenEdit(**{"site": "mlp", "edit": lambda hidden, view: hidden, "tower": "vision", **wrong})


@pytest.mark.parametrize(
    "layers", [1, (1,), (0, 1, 2), "01", (None, 1), (True, 2), (0, float("nan")), (0, float("inf"))]
)
def test_layers_that_are_no_pair_of_numbers_are_refused(llava, layers):
    with pytest.raises(PluginRejected, match=r"edits\.hidden yields a HiddenEdit that cannot be used: layers"):
        run(llava, Edits((HiddenEdit("mlp", lambda hidden, view: hidden * 2, layers),)), "batched")


def test_what_is_no_function_is_refused():
    with pytest.raises(InputError, match="must be a function"):
        HiddenEdit("mlp", torch.ones(3))
    with pytest.raises(InputError, match="must be a function"):
        AttentionCapture("mass", (0, 1), "mean")
