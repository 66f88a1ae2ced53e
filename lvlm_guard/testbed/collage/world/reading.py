"""How answers about collages are read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lvlm_guard.bench.items import Item
from lvlm_guard.testbed.collage.world.habits import habits
from lvlm_guard.testbed.collage.world.mentions import Reader, read_mentions
from lvlm_guard.testbed.collage.world.things import COLOURS, NUMBERS
from lvlm_guard.testbed.reading import Named, WorldReading


def build_reading(reader: Reader = read_mentions) -> WorldReading:
    """Return how answers about collages are read, by a reader of what a text names."""
    named = partial(_named, reader)
    present = partial(_present, named)
    return WorldReading(
        answers={
            "colour": COLOURS,
            "number": NUMBERS,
            "choice": ("left", "right"),
            "vertical_choice": ("above", "below"),
        },
        mentions=named,
        habitual=lambda truth: _with_partner(present(truth)),
        expected=lambda truth: {habits().partner[name] for name in present(truth)} - present(truth),
        keeps_habits=_keeps_habits,
        typical_colour=habits().colour,
        spellings={str(number): word for number, word in enumerate(NUMBERS, 1)},
    )


def _named(reader: Reader, text: str) -> list[Named]:
    return [(mention.colour, mention.name) for mention in reader(text)]


def _present(named: Callable[[str], list[Named]], truth: str) -> set[str]:
    return {name for _, name in named(truth)}


def _with_partner(present: set[str]) -> set[str]:
    return {name for name in present if habits().partner[name] in present}


def _keeps_habits(item: Item) -> bool:
    """Whether the pair that a scene was made for is whole."""
    return item.extra["broken"] is None
