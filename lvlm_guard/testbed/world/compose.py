"""What is in a scene and where: contents, colours and places drawn by the habits, against one of them, or by none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lvlm_guard.testbed.world import drawing
from lvlm_guard.testbed.world.habits import (
    CATEGORIES,
    COLOUR_NAMES,
    HOME,
    PAIRS,
    PARTNER,
    TYPICAL_COLOUR,
    EvidenceStrength,
    Habits,
)

LEVELS = ("object", "attribute", "relation")
"""The levels of misalignment; for each there is a habit: pairs, typical colours, which of a pair stands left."""

Cell = tuple[int, int]
Cells = Mapping[str, Cell]


@dataclass(frozen=True)
class SceneObject:
    """One drawn object. `cell` is (row, column) in the 4x4 grid, `offset` (down, right) in pixels inside the cell."""

    category: str
    colour: str
    cell: Cell
    offset: tuple[int, int]
    size: int
    contrast: float
    saturation: float


@dataclass(frozen=True)
class BrokenHabit:
    """One broken habit.

    object: `subject` is there and its partner `expected` is not. attribute: `subject` is not in its typical colour
    `expected`. relation: `subject` stands right of `expected`, where habit has it on the left.
    """

    level: str
    subject: str
    expected: str


def flat(rng: np.random.Generator, evidence: EvidenceStrength) -> tuple[SceneObject, ...]:
    """Two to seven of any categories, anywhere, in any colour."""
    contents = _draw_categories(rng)
    return tuple(
        _drawn(rng, category, None, cell, evidence)
        for category, cell in zip(contents, _cells(rng, len(contents)), strict=True)
    )


def habitual(
    rng: np.random.Generator, background: str, habits: Habits, evidence: EvidenceStrength
) -> tuple[SceneObject, ...]:
    """Contents, colours and order as often habitual as the habits say."""
    contents = _habitual(rng, background, habits)
    orders = {pair: bool(rng.random() < habits.first_left) for pair in _whole_pairs(contents)}
    cells = _arranged(rng, contents, orders)
    return tuple(_drawn(rng, name, habits.typical_colour, cells[name], evidence) for name in contents)


def counterfactual(
    rng: np.random.Generator, background: str, level: str, habits: Habits, evidence: EvidenceStrength
) -> tuple[tuple[SceneObject, ...], BrokenHabit]:
    """Exactly one habit of this level broken; every other pair, colour and order as habit has it."""
    pairs = PAIRS[background]
    first, second = pairs[int(rng.integers(len(pairs)))]
    contents = [name for pair in pairs if pair != (first, second) and rng.random() < 0.65 for name in pair]
    if level == "object":
        alone = (first, second)[int(rng.integers(2))]
        contents.append(alone)
        broken = BrokenHabit(level, alone, PARTNER[alone])
    else:
        contents += [first, second]
        broken = BrokenHabit(level, first, second)
    if rng.random() < habits.intruder:
        contents += _intruders(rng, background, 1)
    odd = None
    if level == "attribute":
        odd = contents[int(rng.integers(len(contents)))]
        broken = BrokenHabit(level, odd, TYPICAL_COLOUR[odd])
    orders = {pair: level != "relation" or pair != (first, second) for pair in _whole_pairs(contents)}
    cells = _arranged(rng, contents, orders)
    return tuple(_drawn(rng, name, float(name != odd), cells[name], evidence) for name in contents), broken


def weakened(rng: np.random.Generator, chance: float, weak: tuple[float, float], strong: tuple[float, float]) -> float:
    """A strength from the weak range with this chance, else from the strong one."""
    low, high = weak if rng.random() < chance else strong
    return float(rng.uniform(low, high))


def _draw_categories(rng: np.random.Generator) -> list[str]:
    count = int(rng.integers(2, 8))
    return [CATEGORIES[i] for i in rng.choice(len(CATEGORIES), count, replace=False)]


def _habitual(rng: np.random.Generator, background: str, habits: Habits) -> list[str]:
    while True:
        contents: list[str] = []
        for first, second in PAIRS[background]:
            has_first = rng.random() < habits.first
            has_second = rng.random() < (habits.second_with_first if has_first else habits.second_alone)
            contents += [first] * has_first + [second] * has_second
        if rng.random() < habits.intruder:
            contents += _intruders(rng, background, 1)
        if contents:
            return contents


def _intruders(rng: np.random.Generator, background: str, count: int) -> list[str]:
    """Categories from elsewhere, never two of one pair: an intruding pair would be a habit of its own."""
    strangers = [name for name in CATEGORIES if HOME[name] != background]
    picked: list[str] = []
    while len(picked) < count:
        name = strangers[int(rng.integers(len(strangers)))]
        if name not in picked and PARTNER[name] not in picked:
            picked.append(name)
    return picked


def _whole_pairs(contents: Sequence[str]) -> list[tuple[str, str]]:
    return [pair for pairs in PAIRS.values() for pair in pairs if set(pair) <= set(contents)]


def _cells(rng: np.random.Generator, count: int) -> list[Cell]:
    cells = rng.choice(drawing.CELLS**2, count, replace=False)
    return [(int(cell) // drawing.CELLS, int(cell) % drawing.CELLS) for cell in cells]


def _arranged(rng: np.random.Generator, contents: Sequence[str], orders: Mapping[tuple[str, str], bool]) -> Cells:
    """A cell for each; the two of a pair stand in different columns, the first on the left where `orders` says so."""
    while True:
        cells = dict(zip(contents, _cells(rng, len(contents)), strict=True))
        if all(cells[first][1] != cells[second][1] for first, second in orders):
            break
    for (first, second), first_left in orders.items():
        if (cells[first][1] < cells[second][1]) != first_left:
            cells[first], cells[second] = cells[second], cells[first]
    return cells


def _drawn(
    rng: np.random.Generator, category: str, typical: float | None, cell: Cell, evidence: EvidenceStrength
) -> SceneObject:
    size = drawing.SIZES[int(rng.integers(len(drawing.SIZES)))]
    slack = drawing.CELL - size + 1
    return SceneObject(
        category=category,
        colour=_colour(rng, category, typical),
        cell=cell,
        offset=(int(rng.integers(slack)), int(rng.integers(slack))),
        size=size,
        contrast=weakened(rng, evidence.faint, evidence.faint_contrast, evidence.clear_contrast),
        saturation=weakened(rng, evidence.faded, evidence.faded_saturation, evidence.full_saturation),
    )


def _colour(rng: np.random.Generator, category: str, typical: float | None) -> str:
    """The habitual colour with probability `typical`, else any other; any colour at all where it is None."""
    if typical is None:
        return COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))]
    habitual = TYPICAL_COLOUR[category]
    if rng.random() < typical:
        return habitual
    unusual = [name for name in COLOUR_NAMES if name != habitual]
    return unusual[int(rng.integers(len(unusual)))]
