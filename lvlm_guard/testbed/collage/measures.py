"""Every measure of the collages: those of the drawn scenes, and habit-balanced accuracy of what only collages ask."""

from __future__ import annotations

from functools import partial

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.testbed.collage.world.mentions import Reader, read_mentions
from lvlm_guard.testbed.collage.world.reading import build_reading
from lvlm_guard.testbed.measures import habit_measures, suite_measures

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
    return (*shared, *further)


def _is_of(kinds: tuple[str, ...], answer: AnsweredItem) -> bool:
    return answer.item.kind in kinds
