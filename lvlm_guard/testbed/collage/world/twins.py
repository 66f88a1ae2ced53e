"""Two scenes about the same things, where one keeps each habit that the other breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lvlm_guard.testbed.collage.world.free import LEAN, pick
from lvlm_guard.testbed.collage.world.habits import LanguageHabits, Order, habits
from lvlm_guard.testbed.collage.world.scenes import (
    CELLS,
    Cell,
    CollageScene,
    GroupPlan,
    PictureWeakness,
    draw_backdrop,
    place,
)
from lvlm_guard.testbed.collage.world.things import COLOURS, NAMES, NUMBERS, SIZES


@dataclass(frozen=True)
class HabitContrast:
    """A habit that one of two scenes keeps and the other breaks.

    Args:
        habit: "partner", "colour", "number", "size" or "order".
        keeper: Which of the two keeps it, 0 or 1.
        subject: The thing it is about. partner: the one that is there with its partner in the keeper, and alone in the other.
        second: partner: a thing that is there in the breaker alone, without its partner. order: the second thing. Else empty.
        side: order: the axis, by the side on which the first stands by habit.
    """

    habit: str
    keeper: int
    subject: str
    second: str = ""
    side: str = ""


@dataclass(frozen=True)
class Twins:
    """Two scenes and the habits in which they differ."""

    scenes: tuple[CollageScene, CollageScene]
    contrasts: tuple[HabitContrast, ...]


@dataclass
class _Draft:
    """What the two scenes are to hold: for each the values of every thing, and where the things are."""

    contrasts: list[HabitContrast]
    values: tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]] = field(default_factory=lambda: ({}, {}))

    def add(self, name: str, *scenes: int) -> None:
        for at in scenes:
            self.values[at].setdefault(name, {})

    def set(self, name: str, quantity: str, both: Sequence[str]) -> None:
        for values, value in zip(self.values, both, strict=True):
            values[name][quantity] = value


_PLANS: Mapping[tuple[bool, bool], float] = {
    (True, True): 0.5,
    (True, False): 0.2,
    (False, True): 0.2,
    (False, False): 0.1,
}
"""Chances of a second thing to be in order with, and of one to be counted."""


def compose_twins(
    rng: np.random.Generator, name: tuple[str, int, int], stream: tuple[int, ...], evidence: PictureWeakness
) -> Twins:
    """Draw two scenes about the same things; `name` is split, seed and number of the twins."""
    draft = _draft(rng, habits())
    scenes = [_build(rng, draft, at, name, (*stream, at), evidence) for at in range(2)]
    return Twins((scenes[0], scenes[1]), tuple(draft.contrasts))


def _draft(rng: np.random.Generator, language: LanguageHabits) -> _Draft:
    orders, counts = list(_PLANS)[int(rng.choice(len(_PLANS), p=list(_PLANS.values())))]
    order = language.orders[int(rng.integers(len(language.orders)))]
    subject, second = (order.first, order.second) if rng.random() < 0.5 else (order.second, order.first)
    draft = _Draft([])
    shared = [subject, second] if orders else [subject]
    for name in shared:
        draft.add(name, 0, 1)
    _add_pair(rng, language, draft, subject, shared)
    if counts:
        _add_counted(rng, language, draft)
    _add_look(rng, language, draft, shared)
    if orders:
        draft.contrasts.append(HabitContrast("order", _coin(rng), order.first, order.second, order.side))
    return draft


def _add_pair(
    rng: np.random.Generator, language: LanguageHabits, draft: _Draft, subject: str, shared: Sequence[str]
) -> None:
    """The partner in one scene; in the other, a thing that has none there, of the popular ones half the time."""
    keeper, partner = _coin(rng), language.partner[subject]
    popular = bool(rng.random() < 0.5)
    candidates = [name for name in _free(language, {*shared, partner}) if (name in language.popular) == popular]
    alone = candidates[int(rng.integers(len(candidates)))]
    draft.add(partner, keeper)
    draft.add(alone, 1 - keeper)
    draft.contrasts.append(HabitContrast("partner", keeper, subject, alone))


def _add_counted(rng: np.random.Generator, language: LanguageHabits, draft: _Draft) -> None:
    candidates = _free(language, {*draft.values[0], *draft.values[1]})
    name, keeper = candidates[int(rng.integers(len(candidates)))], _coin(rng)
    usual = NUMBERS[language.number[name] - 1]
    draft.add(name, 0, 1)
    draft.set(name, "number", _as_kept(keeper, usual, pick(rng, NUMBERS, usual, 0.0)))
    draft.contrasts.append(HabitContrast("number", keeper, name))


def _add_look(rng: np.random.Generator, language: LanguageHabits, draft: _Draft, shared: Sequence[str]) -> None:
    """Colour of one of the things that both scenes hold, size of one of them."""
    tinted, sized = (shared[int(rng.integers(len(shared)))] for _ in range(2))
    for habit, name, values, usual in (
        ("colour", tinted, COLOURS, language.colour[tinted]),
        ("size", sized, SIZES, language.size[sized]),
    ):
        keeper = _coin(rng)
        draft.set(name, habit, _as_kept(keeper, usual, pick(rng, values, usual, 0.0)))
        draft.contrasts.append(HabitContrast(habit, keeper, name))


def _as_kept(keeper: int, usual: str, unusual: str) -> tuple[str, str]:
    return (unusual, usual) if keeper else (usual, unusual)


def _free(language: LanguageHabits, occupied: set[str]) -> list[str]:
    """Return the things that are not taken and whose partners are not."""
    return [name for name in NAMES if name not in occupied and language.partner[name] not in occupied]


def _coin(rng: np.random.Generator) -> int:
    return int(rng.integers(2))


def _build(
    rng: np.random.Generator,
    draft: _Draft,
    at: int,
    name: tuple[str, int, int],
    stream: tuple[int, ...],
    evidence: PictureWeakness,
) -> CollageScene:
    names = list(draft.values[at])
    cells = _draw_cells(rng, names, _order_of(draft, at))
    groups = tuple(place(rng, _want(rng, thing, cells[thing], draft.values[at][thing]), evidence) for thing in names)
    split, seed, number = name
    backdrop = draw_backdrop(rng, (*stream, 7), evidence)
    pair = next(contrast for contrast in draft.contrasts if contrast.habit == "partner")
    return CollageScene(split, seed, 2 * number + at, groups, backdrop, pair_kept=pair.keeper == at)


def _want(rng: np.random.Generator, name: str, cell: Cell, values: Mapping[str, str]) -> GroupPlan:
    """Fill in what a draft leaves open: one of it, of any size, in its own colours or in any."""
    colour = values.get("colour")
    if colour is None and rng.random() < LEAN.tinted:
        colour = COLOURS[int(rng.integers(len(COLOURS)))]
    number = NUMBERS.index(values.get("number", NUMBERS[0])) + 1
    size = None if number > 1 else values.get("size", SIZES[int(rng.integers(len(SIZES)))])
    return GroupPlan(name, cell, number, size, colour)


def _order_of(draft: _Draft, at: int) -> Order | None:
    """Return how two things have to stand in a scene, the first on that side of the second."""
    for contrast in draft.contrasts:
        if contrast.habit == "order":
            names = (contrast.subject, contrast.second)
            first, second = names if contrast.keeper == at else names[::-1]
            return Order(first, second, contrast.side)
    return None


def _draw_cells(rng: np.random.Generator, names: Sequence[str], order: Order | None) -> dict[str, Cell]:
    """Draw a quarter for each thing, anew until the order is kept."""
    while True:
        cells = dict(zip(names, (CELLS[int(at)] for at in rng.permutation(len(CELLS))), strict=False))
        if order is None:
            return cells
        axis = int(order.side == "left")
        if cells[order.first][axis] < cells[order.second][axis]:
            return cells
