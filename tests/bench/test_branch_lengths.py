"""The branches of a stack as lengths, read without a model; what is left out of a prediction is named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from lvlm_guard_search import OPERA

from lvlm_guard import Branch, Guard, Insert, Stack, hookimpl
from lvlm_guard.bench.running.branch_lengths import Uncounted, list_uncounted, read_branches, sketch_request
from lvlm_guard.bench.running.cost_model import BranchLength
from lvlm_guard.bench.running.shapes import LLAVA_1_5_7B
from lvlm_guard.errors import InputError, ProcessorNeeded
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words

REQUEST = sketch_request(LLAVA_1_5_7B, 64)


def lengths(stack, request=REQUEST):
    return read_branches(Stack.of(stack), request)


def test_a_branch_has_the_length_of_what_it_keeps_and_adds():
    assert lengths("vcd") == (BranchLength("diffusion noise", image=1.0, text=0, encodes=True),)
    assert lengths("m3id") == (BranchLength("no image", image=0.0, text=0, encodes=False),)
    blank, unknown = lengths("vdd")
    assert (blank.image, blank.text, unknown.image, unknown.text) == (0, 0, 0, 1)
    assert not unknown.encodes
    (same,) = lengths("sid")
    assert (same.image, same.text, same.encodes) == (1, 0, False)


def test_text_is_counted_by_the_tokenizer():
    with pytest.raises(ProcessorNeeded):
        lengths("icd")
    (branch,) = lengths("icd", sketch_request(LLAVA_1_5_7B, 64, tokenizer=Words()))
    words = len(
        Words()("You are a confused object detector and give only a vague impression of the image.")["input_ids"]
    )
    assert (branch.image, branch.text, branch.encodes) == (1, words, False)


def test_branches_of_equal_keys_are_one_and_neutral_strategies_have_none():
    assert len(lengths(["m3id", "pai"])) == 1
    assert len(lengths(["m3id", "vcd"])) == 2
    assert lengths({"stack": [{"name": "vcd", "params": {"alpha": 0}}]}) == ()
    assert lengths([]) == lengths("yes_bias") == ()


def test_as_many_branches_are_read_as_a_real_call_runs():
    model, inputs = tiny("llava")
    guard = Guard(model, stack=["vcd", "vdd", "m3id"])
    guard.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert len(guard.report.branches) == len(lengths(["vcd", "vdd", "m3id"])) == 3


@dataclass(frozen=True)
class Rows:
    """A text for each row, as a strategy that looks at pictures would have it."""

    name = "rows"

    @hookimpl
    def branches(self, gen):
        yield Branch("rows", tokens=(Insert(per_row=((1,), (1, 2, 3))),))


@dataclass(frozen=True)
class Late:
    """A strategy whose branches depend on what it found out before."""

    name = "late"

    @hookimpl
    def branches(self, gen):
        yield gen.state["late"]


def test_rows_are_as_long_as_the_longest():
    (branch,) = lengths([Rows()])
    assert (branch.name, branch.text) == ("rows", 3)


def test_branches_known_only_in_a_call_are_refused():
    with pytest.raises(InputError, match=r"branches of 'late' are known only in a real call \(KeyError: 'late'\)"):
        lengths([Late()])


def test_other_work_is_named_with_what_the_strategy_says_of_it():
    assert list_uncounted(Stack.of("vcd")) == ()
    assert list_uncounted(Stack.of(["pai", "vcd"])) == (
        Uncounted("pai", ("attention",), "one image-free branch; attention of the newest row twice"),
    )
    (search,) = list_uncounted(Stack.of([OPERA()]))
    assert search.hooks[0] == "search"
    assert list_uncounted(Stack.of({"stack": [{"name": "pai", "params": {"alpha": 0, "gamma": 1}}]})) == ()
