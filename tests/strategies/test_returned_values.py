"""What a user's function returns is checked: a value of another kind ends in one error that names the strategy and the value."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from coloured_pictures import draw_pictures
from lvlm_guard_augmentation import Evidence, Revise
from lvlm_guard_search import Rank

from lvlm_guard import Guard, InputError
from lvlm_guard.testing import TinyProcessor, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


class Unreadable:
    """A value whose every method raises."""

    def __iter__(self):
        raise RuntimeError("no items")

    def __repr__(self):
        raise RuntimeError("no repr")


def endless():
    while True:
        yield 1.0


LOOP = []
LOOP.append(LOOP)
ANYTHING = {
    "None": None, "number": 5, "bytes": b"x", "object": object(), "unreadable": Unreadable(), "loop": LOOP, "dict": {0: 1.0},
    "set": {1.0}, "meta tensor": torch.zeros(3, device="meta"), "array of objects": np.array([None] * 3), "endless": endless(),
}  # fmt: skip
SCORES = {
    "text": "111", "numerals": ["1"] * 3, "nothing": [None] * 3, "too few": [1.0], "too many": [1.0] * 9, "complex": [1j] * 3,
    "huge": [10**400] * 3, "NaN": [math.nan] * 3, "infinite array": np.full(3, np.inf), "NaN tensor": torch.full((3,), math.nan),
    "column": np.zeros((3, 1)), "column tensor": torch.zeros(3, 1), "0-d": np.array(1.0), "keys": {0: 1.0, 1: 1.0, 2: 1.0},
}  # fmt: skip
BOXES = {
    **{f"side {side!r}": [(0, 0, side, 9, "w9")] for side in (math.nan, math.inf, 10**400, "9", None, 1j, [9])},
    **{f"label {label!r}": [(0, 0, 9, 9, label)] for label in (None, 3, "\ud800", ["w9"])},
    "one box": (0, 0, 9, 9, "w9"), "short": [(0, 0, 9, 9)], "long": [(0, 0, 9, 9, "w9", 1)], "text": ["0123x"],
    "numbers": [1, 2], "array": np.zeros((2, 5)), "half a character": "\ud800",
}  # fmt: skip
PAIRS = {
    "text": "ab", "texts": ["ab"], "empty pair": [()], "single": [("w9",)], "triple": [("w9", "?", "?")], "numbers": [(1, 2)],
    "no question": [("w9", None)], "blank question": [("w9", " ")], "blank piece": [("", "w9")], "half a character": [("w9", "\ud800")],
}  # fmt: skip


@functools.cache
def request():
    guard = Guard(tiny("llava")[0], TinyProcessor("llava"), [])
    return guard, guard.inputs(images=draw_pictures()[0], text="a <image> b")


def generate(strategy):
    guard, inputs = request()
    return guard.using([strategy]).generate(**inputs, max_new_tokens=1, do_sample=False)


def failure(strategy):
    with pytest.raises(InputError) as caught:
        generate(strategy)
    return str(caught.value)


def check(name, strategy):
    message = failure(strategy)
    assert message.startswith(f"'{name}' needs ") or "yields more than 10000 items" in message
    assert message.endswith(".")
    assert len(message) < 300


@pytest.mark.parametrize("kind", [*ANYTHING, *SCORES])
def test_a_scorer_returns_a_finite_number_for_each_sentence(kind):
    check("rank", Rank(scorer=lambda *_: {**ANYTHING, **SCORES}[kind], timeout=5))


@pytest.mark.parametrize("kind", [*ANYTHING, *BOXES])
def test_a_source_returns_text_or_boxes(kind):
    check("evidence", Evidence(source=lambda *_: {**ANYTHING, **BOXES}[kind], crop=True, timeout=5))


@pytest.mark.parametrize("kind", [*ANYTHING, *PAIRS])
def test_a_splitter_returns_pairs_of_text(kind):
    check("revise", Revise(splitter=lambda *_: {**ANYTHING, **PAIRS}[kind], timeout=5))


@pytest.mark.parametrize("scores", [
    np.zeros(3, np.float32), torch.zeros(3, dtype=torch.bfloat16), (1, 2, 3), [True, False, True], [torch.tensor(1.0)] * 3,
    [np.float16(1)] * 3, {0: 1.0, 1: 2.0, 2: 3.0}.values(), map(float, range(3)), torch.zeros(3, requires_grad=True),
])  # fmt: skip
def test_scores_come_in_any_ordered_collection_of_numbers(scores):
    guard, inputs = request()
    words = [token for token in range(128) if guard.processor.tokenizer.decode([token]).strip()]
    settings = {"max_new_tokens": 1, "prefix_allowed_tokens_fn": lambda *_: words}  # an empty sentence needs no score
    assert guard.using([Rank(scorer=lambda *_: scores)]).generate(**inputs, **settings).numel()


def test_boxes_may_be_of_tensors_and_arrays():
    sides = (0, torch.tensor(1), np.int64(20), np.float32(25.5))
    assert generate(Evidence(source=lambda *_: [[*sides, "w9"]], crop=True)).numel()


def test_a_generator_that_raises_is_named():
    def split(sentence):
        yield (sentence, "a?")
        raise RuntimeError("no parser")

    assert "raised RuntimeError: no parser" in failure(Revise(splitter=split))
