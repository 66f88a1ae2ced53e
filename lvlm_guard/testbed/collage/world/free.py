"""Scenes to train on: any things, leaning lightly towards what language expects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lvlm_guard.testbed.collage.world.habits import LanguageHabits, habits
from lvlm_guard.testbed.collage.world.scenes import (
    CELLS,
    Cell,
    CollageScene,
    GroupPlan,
    PictureWeakness,
    ThingGroup,
    draw_backdrop,
    place,
)
from lvlm_guard.testbed.collage.world.things import COLOURS, NAMES, NUMBERS, SIZES


@dataclass(frozen=True)
class Lean:
    """How often a training scene keeps a habit. All are probabilities.

    Above what chance would give, so that what the language model believed before is not unlearnt, and far below
    certainty, so that looking pays in every scene.
    """

    partner: float = 0.35
    """Of a thing's partner being there as well."""
    colour: float = 0.55
    number: float = 0.45
    size: float = 0.60
    order: float = 0.62
    tinted: float = 0.55
    """Of a thing being tinted at all."""
    several: float = 0.35
    """Of several copies where nothing else is drawn from the expected number."""


LEAN = Lean()
FLAT = Lean(partner=0.0, colour=1 / len(COLOURS), number=1 / len(NUMBERS), size=0.5, order=0.5)
"""No lean at all: every value as often as chance has it."""
_HOW_MANY = (0.12, 0.28, 0.32, 0.28)
"""Chances of one to four things."""


def compose_free(
    rng: np.random.Generator,
    name: tuple[str, int, int],
    stream: tuple[int, ...],
    evidence: PictureWeakness,
    lean: Lean = LEAN,
) -> CollageScene:
    """Draw a scene for training."""
    language = habits()
    names = draw_names(rng, language, lean, 1 + int(rng.choice(len(_HOW_MANY), p=_HOW_MANY)))
    cells = _draw_cells(rng, language, lean, names)
    groups = tuple(
        _draw_group(rng, language, lean, thing, cell, evidence) for thing, cell in zip(names, cells, strict=True)
    )
    return CollageScene(*name, groups, draw_backdrop(rng, (*stream, 7), evidence))


def draw_names(rng: np.random.Generator, language: LanguageHabits, lean: Lean, count: int) -> list[str]:
    """Draw so many different things; where a partner follows a thing it is named after it."""
    names: list[str] = []
    while len(names) < count:
        name = NAMES[int(rng.integers(len(NAMES)))]
        if name in names or language.partner[name] in names:
            continue
        names.append(name)
        if len(names) < count and rng.random() < lean.partner:
            names.append(language.partner[name])
    return names


def _draw_cells(rng: np.random.Generator, language: LanguageHabits, lean: Lean, names: list[str]) -> list[Cell]:
    """Draw a quarter for each thing; mostly again where that breaks an expected order."""
    keep = rng.random() < 2 * lean.order - 1
    for _ in range(20):
        cells = [CELLS[int(at)] for at in rng.permutation(len(CELLS))[: len(names)]]
        if not keep or not breaks_order(language, names, cells):
            break
    return cells


def breaks_order(language: LanguageHabits, names: list[str], cells: list[Cell]) -> bool:
    """Return whether things stand the other way round than language expects."""
    cell = dict(zip(names, cells, strict=True))
    return any(
        cell[order.first][axis] > cell[order.second][axis]
        for order in language.orders
        if order.first in cell and order.second in cell
        for axis in [int(order.side == "left")]
    )


def _draw_group(
    rng: np.random.Generator, language: LanguageHabits, lean: Lean, name: str, cell: Cell, evidence: PictureWeakness
) -> ThingGroup:
    number = _draw_number(rng, language.number[name], lean)
    size = None if number > 1 else pick(rng, SIZES, language.size[name], lean.size)
    colour = pick(rng, COLOURS, language.colour[name], lean.colour) if rng.random() < lean.tinted else None
    return place(rng, GroupPlan(name, cell, number, size, colour), evidence)


def _draw_number(rng: np.random.Generator, expected: int, lean: Lean) -> int:
    """One by default; else leaning towards the expected number."""
    if rng.random() >= 2 * lean.several:
        return 1
    return expected if rng.random() < lean.number else 1 + int(rng.integers(len(NUMBERS)))


def pick(rng: np.random.Generator, values: tuple[str, ...], expected: str, chance: float) -> str:
    """Draw the expected value with this chance, else one of the others."""
    unexpected = [value for value in values if value != expected]
    return expected if rng.random() < chance else unexpected[int(rng.integers(len(unexpected)))]
