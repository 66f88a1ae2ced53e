"""How answers about drawn scenes are read."""

from __future__ import annotations

from lvlm_guard.bench.items import Item
from lvlm_guard.testbed.reading import WorldReading
from lvlm_guard.testbed.world.habits import BACKGROUNDS, COLOUR_NAMES, HOME, PARTNER, TYPICAL_COLOUR
from lvlm_guard.testbed.world.language import mentions


def habitual_objects(truth: str) -> set[str]:
    """Return the categories of a true caption that habit puts into its scene: at home, with their partner."""
    present = {category for _, category in mentions(truth)}
    return {name for name in present if PARTNER[name] in present and HOME[name] == _background(truth)}


def expected_objects(truth: str) -> set[str]:
    """Return the categories that habit puts into the scene of a true caption and that are not there: partners of what is, at home."""
    present = {category for _, category in mentions(truth)}
    return {PARTNER[name] for name in present if PARTNER[name] not in present and HOME[name] == _background(truth)}


def _keeps_habits(item: Item) -> bool:
    """Whether there are whole pairs at home alone, in their typical colours."""
    habitual = habitual_objects(item.truth)
    return all(category in habitual and colour == TYPICAL_COLOUR[category] for colour, category in mentions(item.truth))


def _background(truth: str) -> str:
    return next(word for word in truth.split() if word in BACKGROUNDS)


DRAWN = WorldReading(
    answers={"colour": COLOUR_NAMES, "choice": ("left", "right")},
    mentions=mentions,
    habitual=habitual_objects,
    expected=expected_objects,
    keeps_habits=_keeps_habits,
    typical_colour=TYPICAL_COLOUR,
)
"""The reading of the drawn world."""
