"""Every measure of the collages: those of the drawn scenes, and habit-balanced accuracy of what only collages ask."""

from __future__ import annotations

from functools import partial

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.scoring.measures import Counts, Measure
from lvlm_guard.testbed.collage.world.mentions import Reader, read_mentions
from lvlm_guard.testbed.collage.world.reading import build_reading
from lvlm_guard.testbed.measures import build_measure, habit_measures, suite_measures
from lvlm_guard.testbed.reading import WorldReading
from lvlm_guard.testbed.scoring import is_caption

_KINDS = (
    ("colour", "attribute", ("colour", "is_colour")),
    ("number", "attribute", ("number", "is_number")),
    ("size", "attribute", ("is_size",)),
    ("sideways", "relation", ("relation", "choice")),
    ("vertical", "relation", ("vertical", "vertical_choice")),
)
"""What is asked within a level: name, level, kinds of questions."""

_LEFT_OUT = ("accuracy_vertical",)
"""Measures of the drawn scenes that say what is not so here."""


def collage_measures(reader: Reader = read_mentions) -> tuple[Measure, ...]:
    """Return every measure of the suite, its headline first: habit-balanced accuracy over all levels.

    Args:
        reader: Says what a caption names.
    """
    world = build_reading(reader)
    shared = [measure for measure in suite_measures(world=world) if measure.name not in _LEFT_OUT]
    further = [
        measure
        for name, level, kinds in _KINDS
        for measure in habit_measures(level, partial(_is_of, kinds), name, name, world)
    ]
    return (*shared, *_caption_attribute_measures(reader), *further)


def _caption_attribute_measures(reader: Reader) -> list[Measure]:
    """Numbers and sizes in captions, as colours are counted."""
    return [
        build_measure(
            name,
            "attribute",
            f"named objects in a wrong {attribute}",
            is_caption,
            partial(_count_mistaken, reader, attribute),
            higher_is_better=False,
        )
        for name, attribute in (("miscounted", "number"), ("missized", "size"))
    ]


def _count_mistaken(reader: Reader, attribute: str, answer: AnsweredItem, world: WorldReading) -> Counts:
    """Return (in a wrong number or size, named with one) of the things of a caption that are there and whose own is known."""
    del world  # it reads names and colours alone
    true = {mention.name: getattr(mention, attribute) for mention in reader(answer.item.truth)}
    pairs = [(getattr(mention, attribute), true.get(mention.name)) for mention in reader(answer.text)]
    compared = [(value, expected) for value, expected in pairs if value is not None and expected is not None]
    return float(sum(value != expected for value, expected in compared)), float(len(compared))


def _is_of(kinds: tuple[str, ...], answer: AnsweredItem) -> bool:
    return answer.item.kind in kinds
