"""A row is scored, described and asked about by its own picture, or refused by its number."""

import functools
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lvlm_guard_augmentation import Evidence
from lvlm_guard_search import Rank
from PIL import Image

from lvlm_guard import Guard, InputError, hookimpl
from lvlm_guard.testing import TinyProcessor, tiny
from lvlm_guard.testing.processing import SPECIAL

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")
ROWS = {
    "two and none": (2, 0),
    "none and two": (0, 2),
    "three, none and none": (3, 0, 0),
    "two, none and one": (2, 0, 1),
    "one and none": (1, 0),
    "none and one": (0, 1),
    "one and two": (1, 2),
    "one each": (1, 1),
    "two": (2,),
}


def finishing(finish):
    """Return a strategy that only has this hook."""

    @dataclass(frozen=True)
    class Finishing:
        neutral: ClassVar[dict[str, Any]] = {}

        @hookimpl
        def finish(self, gen):
            finish(gen)
            return []

    return Finishing()


@dataclass
class Eyes(TinyProcessor):
    """Writes down the shades of the pictures it is shown."""

    seen: list[Any]

    def __post_init__(self):
        super().__init__("llava")

    def __call__(self, images=None, text=(), **options):
        self.seen.extend(map(shade_of, images or ()))
        return super().__call__(images, text, **options)


@functools.cache
def model():
    return tiny("llava")[0]


def shade_of(picture):
    return int(np.asarray(picture)[0, 0, 0])


def ask_for_rows(counts):
    """Return conversations with some pictures each, and the shades of the pictures of each row."""
    shades, texts, conversations = iter(range(10, 250, 10)), iter(("w17", "w20", "w23")), []
    rows = [[next(shades) for _ in range(count)] for count in counts]
    for row in rows:
        items = [{"type": "image", "image": Image.new("RGB", (30, 30), (shade,) * 3)} for shade in row]
        conversations.append([{"role": "user", "content": [*items, {"type": "text", "text": next(texts)}]}])
    return conversations, rows


@pytest.mark.parametrize("counts", ROWS.values(), ids=ROWS)
def test_a_row_is_asked_about_with_its_own_picture(counts):
    seen, errors, wanted = [], {}, []

    def ask(gen):
        for row in range(len(counts)):
            seen.append(f"row {row}")
            try:
                gen.ask(["w17 ?"], row)
            except InputError as error:
                errors[row] = str(error)

    conversations, rows = ask_for_rows(counts)
    Guard(model(), Eyes(seen), [finishing(ask)]).chat(conversations, max_new_tokens=1)
    for row, shades in enumerate(rows):
        single = len(shades) == 1 and max(counts) == 1
        wanted += [f"row {row}", *shades] if single else [f"row {row}"]
        assert (row in errors) != single
        assert single or f"Row {row} " in errors[row]
    assert seen[sum(counts) :] == wanted


@pytest.mark.parametrize("counts", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", ["rank", "evidence"])
def test_every_row_has_a_picture_of_its_own_or_the_call_is_refused(name, counts):
    seen = set()

    def score(picture, sentences):
        seen.add(shade_of(picture))
        return [0.0] * len(sentences)

    def describe(picture, _):
        seen.add(shade_of(picture))
        return ""

    strategy = Rank(scorer=score) if name == "rank" else Evidence(source=describe)
    conversations, rows = ask_for_rows(counts)
    guard = Guard(model(), TinyProcessor("llava"), [strategy])
    if set(counts) == {1}:
        guard.chat(conversations, max_new_tokens=1, suppress_tokens=[*SPECIAL])  # an empty sentence needs no score
        assert seen == {shade for shades in rows for shade in shades}
        return
    with pytest.raises(InputError, match=r"Row \d .*[Pp]ass"):
        guard.chat(conversations, max_new_tokens=1)
    assert not seen


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_that_is_none_is_refused(row):
    lost = finishing(lambda gen: gen.ask(["w17 ?"], row))
    with pytest.raises(InputError, match=f"no row {row}: .* 0 to 1"):
        Guard(model(), TinyProcessor("llava"), [lost]).chat(ask_for_rows((1, 1))[0], max_new_tokens=1)


def test_a_row_is_asked_about_as_its_picture_was_read():
    class Reader(TinyProcessor):
        def __call__(self, images=None, text=(), **options):
            seen.append({name: value for name, value in options.items() if name in sizes})
            return super().__call__(images, text, **options)

    sizes, seen = {"size", "max_pixels", "max_length"}, []
    guard = Guard(model(), Reader("llava"), [finishing(lambda gen: [gen.ask(["w17 ?"], row) for row in (0, 1)])])
    large, small = (Image.new("RGB", (30, 30), (shade, 0, 0)) for shade in (200, 100))
    first = guard.inputs(images=large, text="<image> w17", size={"height": 336}, max_length=99)
    second = guard.inputs(images=small, text="<image> w17", max_pixels=99)
    guard.generate(**{name: torch.cat([first[name], second[name]]) for name in first}, max_new_tokens=1)
    told = [options for options, _ in groupby(seen[2:])]  # more than once where no look takes the question
    assert told == [{"size": {"height": 336}}, {"max_pixels": 99}]


def test_a_picture_read_with_other_options_of_text_is_the_same():
    guard = Guard(model(), TinyProcessor("llava"), [finishing(lambda gen: gen.ask(["w17 ?"], 0))])
    image = Image.new("RGB", (30, 30), (0, 70, 0))
    first = guard.inputs(images=image, text="<image> w17", max_length=99)
    guard.inputs(images=image, text="<image> w17")
    guard.generate(**{name: value.clone() for name, value in first.items()}, max_new_tokens=1)
