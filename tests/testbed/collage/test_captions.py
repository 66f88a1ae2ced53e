"""Captions say what is there, in every wording, and are read back."""

from __future__ import annotations

import numpy as np
import pytest

from lvlm_guard.testbed.collage.world.captions import caption, write_caption
from lvlm_guard.testbed.collage.world.mentions import Mention, plural, read_mentions
from lvlm_guard.testbed.collage.world.splits import scene
from lvlm_guard.testbed.collage.world.things import COLOURS, NAMES, SIZES, THINGS


def test_the_measured_caption_says_all_that_is_known() -> None:
    for index in range(300):
        drawn = scene("train", index)
        read = {(m.name, m.number, m.colour, m.size) for m in read_mentions(caption(drawn))}
        assert read == {(g.name, g.number, g.colour, g.size) for g in drawn.groups}


def test_every_wording_is_true_and_complete() -> None:
    rng, starts = np.random.default_rng(0), set()
    for index in range(400):
        drawn = scene("train", index)
        text = write_caption(drawn, rng)
        starts.add(text.split()[0])
        assert text.endswith(".")
        assert text[0].isupper()
        mentions = read_mentions(text)
        assert {m.name for m in mentions} == drawn.present, text
        for mention in mentions:
            check(mention, drawn.find(mention.name), text)
    assert len(starts) > 5


def check(mention: Mention, group, text: str) -> None:
    assert mention.colour in (group.colour, None), text
    assert mention.size in (group.size, None), text
    assert mention.number in (group.number, None) or "the " + group.name in text.lower(), text


def test_where_things_are_is_said_truly() -> None:
    rng, said = np.random.default_rng(1), 0
    for index in range(400):
        drawn = scene("train", index)
        for sentence in write_caption(drawn, rng).split(". "):
            said += check_sentence(drawn, sentence)
    assert said > 100


def check_sentence(drawn, sentence: str) -> int:
    phrases = {"to the left of": (1, -1), "to the right of": (1, 1), "above": (0, -1), "below": (0, 1)}
    found = next((phrase for phrase in phrases if f" {phrase} " in sentence), None)
    if found is None:
        return 0
    one, other = (read_mentions(part)[0] for part in sentence.split(f" {found} "))
    axis, sign = phrases[found]
    difference = drawn.find(one.name).cell[axis] - drawn.find(other.name).cell[axis]
    assert np.sign(difference) == sign, sentence
    return 1


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("A dog and two Cats.", [("dog", 1, None, None), ("cat", 2, None, None)]),
        ("a hot dog", [("hot dog", 1, None, None)]),
        ("hot-dogs, mice", [("hot dog", None, None, None), ("mouse", None, None, None)]),
        ("three tiny red puppies", [("dog", 3, "red", "small")]),
        ("A large, blue teapot", [("teapot", 1, "blue", "big")]),
        ("2 loaves of bread", [("loaf of bread", 2, None, None)]),
        ("slices of pizza", [("pizza", None, None, None)]),
        ("There is no dog, and there isn't a cat.", []),
        ("without a hat, not any cows", []),
        ("a pair of shoes", [("shoe", 2, None, None)]),
        ("a soccer\nball", [("soccer ball", 1, None, None)]),
        ("a starfish, a dogged carpenter", []),
        ("", []),
    ],
)
def test_texts_are_read(text: str, read: list[tuple]) -> None:
    assert [(m.name, m.number, m.colour, m.size) for m in read_mentions(text)] == read


def test_spans_hold_the_name_and_what_is_said_of_it() -> None:
    text = "I see two small red dogs here"
    (mention,) = read_mentions(text)
    assert text[slice(*mention.span)] == "two small red dogs"


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.name)
def test_every_name_and_plural_is_read_as_its_thing(thing) -> None:
    for word in (thing.name, thing.plurals, *thing.synonyms, *map(plural, thing.synonyms)):
        assert [m.name for m in read_mentions(f"there: {word}.")] == [thing.name], word
    assert thing.indefinite.split()[0] == ("an" if thing.name[0] in "aeiou" else "a")


def test_no_name_is_a_colour_or_a_size() -> None:
    names = {word for thing in THINGS for name in (thing.name, *thing.synonyms) for word in name.split()}
    assert not names & {*COLOURS, *SIZES}
    assert len(NAMES) == len(set(NAMES)) == 84
