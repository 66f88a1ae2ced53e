"""A collage as facts: which things, how many, in which colour and size, where; and the picture of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from lvlm_guard.testbed.collage.world import drawing
from lvlm_guard.testbed.collage.world.drawing import SIDE, Backdrop
from lvlm_guard.testbed.collage.world.pictures import ThingPictures

GRID = 2
CELL = SIDE // GRID
Cell = tuple[int, int]
CELLS: tuple[Cell, ...] = tuple((row, column) for row in range(GRID) for column in range(GRID))


@dataclass(frozen=True)
class Copy:
    """One copy of a thing: its left and upper edge and its longer side in pixels."""

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class ThingGroup:
    """One to four copies of a thing, which share a quarter of the picture.

    Args:
        name: The thing.
        number: How many there are of it, from 1 to 4.
        size: "big" or "small"; None where there are several.
        colour: What it is tinted with; None leaves its own colours, of which nothing is said.
        cell: Row and column of its quarter.
        copies: Where they are.
        opacity: 1 covers what is behind, 0 is invisible.
        mirrored: Whether left and right of the thing are swapped.
    """

    name: str
    number: int
    size: str | None
    colour: str | None
    cell: Cell
    copies: tuple[Copy, ...]
    opacity: float
    mirrored: bool


@dataclass(frozen=True)
class CollageScene:
    """What is in a collage; `draw` makes the picture.

    Args:
        split: The split that it belongs to, which also says by which rendering it is drawn.
        seed: The seed of the split.
        index: Its number in the split.
        groups: What is in it, one group for each thing.
        backdrop: What is behind.
        pair_kept: Whether the things it was made for keep the habit of their pair; None where it was made for none.
    """

    split: str
    seed: int
    index: int
    groups: tuple[ThingGroup, ...]
    backdrop: Backdrop
    pair_kept: bool | None = None

    @property
    def name(self) -> str:
        """The name in results: split, seed and index."""
        return f"{self.split}-{self.seed}-{self.index}"

    @property
    def present(self) -> frozenset[str]:
        """The names of the things in it."""
        return frozenset(group.name for group in self.groups)

    def find(self, name: str) -> ThingGroup | None:
        """Return the group of a thing, or None where there is none of it."""
        return next((group for group in self.groups if group.name == name), None)

    def draw(self, pictures: ThingPictures) -> Image.Image:
        """Return the picture: RGB, 224x224."""
        canvas = drawing.paint(self.backdrop)
        for group in self.groups:
            for copy in group.copies:
                cut = pictures.cut_out(group.name, copy.side, group.colour, mirrored=group.mirrored)
                drawing.paste(canvas, cut, copy.left, copy.top, group.opacity)
        return drawing.finish(drawing.add_noise(canvas, self.backdrop))


@dataclass(frozen=True)
class PictureWeakness:
    """How weak a picture can get: the chance of each weakness, and the range it is drawn from."""

    faint: float = 0.15
    faint_opacity: tuple[float, float] = (0.25, 0.55)
    noisy: float = 0.25
    noisy_sigma: tuple[float, float] = (0.06, 0.16)
    quiet_sigma: tuple[float, float] = (0.01, 0.04)


EVIDENCE = PictureWeakness()
CLEAR = PictureWeakness(faint=0.0, noisy=0.0)
"""Pictures in which nothing is weak."""


@dataclass(frozen=True)
class GroupPlan:
    """What a group is to be, before it has a place of its own."""

    name: str
    cell: Cell
    number: int = 1
    size: str | None = None
    colour: str | None = None


_SIDES = {"big": (88, 104), "small": (44, 54)}
_COPY = (46, 54)
_GAP = 1


def place(rng: np.random.Generator, plan: GroupPlan, evidence: PictureWeakness = EVIDENCE) -> ThingGroup:
    """Put the copies of a group somewhere in its quarter, and draw how well it can be seen."""
    opacity = float(rng.uniform(*evidence.faint_opacity)) if rng.random() < evidence.faint else 1.0
    mirrored = bool(rng.random() < 0.5)
    copies = _single(rng, plan) if plan.number == 1 else _several(rng, plan)
    return ThingGroup(plan.name, plan.number, plan.size, plan.colour, plan.cell, copies, opacity, mirrored)


def _single(rng: np.random.Generator, plan: GroupPlan) -> tuple[Copy, ...]:
    low, high = _SIDES[plan.size or "big"]
    side = int(rng.integers(low, high + 1))
    top, left = (at * CELL + int(rng.integers(0, CELL - side + 1)) for at in plan.cell)
    return (Copy(left, top, side),)


def _several(rng: np.random.Generator, plan: GroupPlan) -> tuple[Copy, ...]:
    """Copies of one size in the corners of the quarter, none over another."""
    half = CELL // 2
    side = int(rng.integers(_COPY[0], _COPY[1] + 1))
    corners = rng.permutation(len(CELLS))[: plan.number]
    places = (CELLS[int(corner)] for corner in corners)
    return tuple(
        Copy(plan.cell[1] * CELL + column * half + _GAP, plan.cell[0] * CELL + row * half + _GAP, side)
        for row, column in places
    )


def draw_backdrop(rng: np.random.Generator, seed: tuple[int, ...], evidence: PictureWeakness = EVIDENCE) -> Backdrop:
    """Draw colours, horizon, spots and noise."""
    top, bottom = (_muted(rng.uniform(0.35, 0.95, 3)) for _ in range(2))
    noise = evidence.noisy_sigma if rng.random() < evidence.noisy else evidence.quiet_sigma
    return Backdrop(
        top=top,
        bottom=bottom,
        horizon=float(rng.uniform(0.35, 0.75)) if rng.random() < 0.5 else 0.0,
        clouds=float(rng.uniform(0.0, 0.25)),
        noise=float(rng.uniform(*noise)),
        seed=seed,
    )


def _muted(tones: np.ndarray) -> tuple[float, float, float]:
    """Take half of its colour away."""
    red, green, blue = (float(tone) for tone in (tones + tones.mean()) / 2)
    return red, green, blue
