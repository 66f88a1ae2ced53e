"""Scenes with known contents, drawn on demand and the same for the same seed everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import drawing
from .errors import TestbedError
from .world import (
    BACKGROUNDS,
    CATEGORIES,
    COLOUR_NAMES,
    COLOURS,
    HOME,
    MILD,
    PAIRS,
    PARTNER,
    TYPICAL_COLOUR,
    Evidence,
    Habits,
    residents,
)

SPLITS: dict[str, int] = {"train": 1, "calibration": 2, "iid": 3, "counterfactual": 4, "flat": 5}
"""The splits and the number each puts into its random stream, which is what keeps them apart.

`train`, `calibration` and `iid` follow the habits. `counterfactual` breaks one habitual pair in every scene and draws
colours uniformly. `flat` has no habits at all: the vision tower is trained on it.
"""

HABITS = Habits()
EVIDENCE = Evidence()


@dataclass(frozen=True)
class SceneObject:
    """One drawn object. `cell` is (row, column) in the 4x4 grid, `offset` (down, right) in pixels inside the cell."""

    category: str
    colour: str
    cell: tuple[int, int]
    offset: tuple[int, int]
    size: int
    contrast: float
    saturation: float


@dataclass(frozen=True)
class Scene:
    """A picture as facts: what is in it, where, and how well it can be seen."""

    split: str
    seed: int
    index: int
    background: str
    objects: tuple[SceneObject, ...]
    noise: float
    """Standard deviation of the pixel noise, where the pixel range is 0 to 1."""
    broken: tuple[str, str] | None = None
    """In a counterfactual scene, the category that is there alone and its missing partner."""

    @property
    def name(self) -> str:
        """Names the scene in results: split, seed and index."""
        return f"{self.split}-{self.seed}-{self.index}"

    @property
    def present(self) -> frozenset[str]:
        """The categories that are in the picture."""
        return frozenset(thing.category for thing in self.objects)

    def find(self, category: str) -> SceneObject | None:
        """The object of this category, or None; a scene holds at most one of each."""
        return next((thing for thing in self.objects if thing.category == category), None)

    @property
    def pixels(self) -> np.ndarray:
        """The picture as an array: uint8, shape (64, 64, 3)."""
        canvas = drawing.backdrop(self.background).copy()
        for thing in self.objects:
            _draw(canvas, thing)
        rng = np.random.default_rng((*_stream(self.split, self.seed, self.index), 1))
        canvas += np.float32(self.noise) * rng.standard_normal(canvas.shape, dtype=np.float32)
        return (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)

    @property
    def picture(self) -> Image.Image:
        """The picture: RGB, 64x64."""
        return Image.fromarray(self.pixels)


def _draw(canvas: drawing.Pixels, thing: SceneObject) -> None:
    mask = drawing.outline(thing.category, thing.size) * np.float32(thing.contrast)
    top, left = (at * drawing.CELL + by for at, by in zip(thing.cell, thing.offset, strict=True))
    drawing.stamp(canvas, mask, drawing.faded(COLOURS[thing.colour], thing.saturation), top, left)


def scenes(split: str, count: int, seed: int = 0, start: int = 0) -> list[Scene]:
    """`count` scenes of a split, from number `start` on; the same arguments give the same scenes."""
    return [scene(split, index, seed) for index in range(start, start + count)]


def scene(split: str, index: int, seed: int = 0, *, habits: Habits = HABITS, evidence: Evidence | None = None) -> Scene:
    """Scene number `index` of a split, whatever other scenes were made before it."""
    rng = np.random.default_rng(_stream(split, seed, index))
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    broken = None
    if split == "flat":
        contents = _anything(rng)
    elif split == "counterfactual":
        contents, broken = _broken(rng, background)
    else:
        contents = _habitual(rng, background, habits)
    typical = habits.typical_colour if split in ("train", "calibration", "iid") else 0.0
    if evidence is None:
        evidence = MILD if split == "flat" else EVIDENCE
    objects = _placed(rng, contents, typical, evidence)
    noise = _weakened(rng, evidence.noisy, evidence.noisy_sigma, evidence.quiet_sigma)
    return Scene(split, seed, index, background, objects, noise, broken)


def _stream(split: str, seed: int, index: int) -> tuple[int, int, int]:
    if split not in SPLITS:
        raise TestbedError(f"scenes: no split named {split!r}. Known: {', '.join(SPLITS)}.")
    if seed < 0 or index < 0:
        raise TestbedError(f"scenes: seed and index must not be negative, got seed {seed}, index {index}.")
    return SPLITS[split], seed, index


def _anything(rng: np.random.Generator) -> list[str]:
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


def _broken(rng: np.random.Generator, background: str) -> tuple[list[str], tuple[str, str]]:
    pairs = PAIRS[background]
    chosen = int(rng.integers(len(pairs)))
    alone = pairs[chosen][int(rng.integers(2))]
    contents = [alone]
    for number, pair in enumerate(pairs):
        if number != chosen and rng.random() < 0.65:
            contents += pair
    contents += _intruders(rng, background, int(rng.integers(3)))
    return contents, (alone, PARTNER[alone])


def _intruders(rng: np.random.Generator, background: str, count: int) -> list[str]:
    """Categories from elsewhere, never two of one pair: an intruding pair would be a habit of its own."""
    strangers = [name for name in CATEGORIES if HOME[name] != background]
    picked: list[str] = []
    while len(picked) < count:
        name = strangers[int(rng.integers(len(strangers)))]
        if name not in picked and PARTNER[name] not in picked:
            picked.append(name)
    return picked


def _placed(
    rng: np.random.Generator, contents: Sequence[str], typical: float, evidence: Evidence
) -> tuple[SceneObject, ...]:
    cells = rng.choice(drawing.CELLS**2, len(contents), replace=False)
    placed = []
    for category, cell in zip(contents, cells, strict=True):
        size = drawing.SIZES[int(rng.integers(len(drawing.SIZES)))]
        slack = drawing.CELL - size + 1
        placed.append(
            SceneObject(
                category=category,
                colour=_colour(rng, category, typical),
                cell=(int(cell) // drawing.CELLS, int(cell) % drawing.CELLS),
                offset=(int(rng.integers(slack)), int(rng.integers(slack))),
                size=size,
                contrast=_weakened(rng, evidence.faint, evidence.faint_contrast, evidence.clear_contrast),
                saturation=_weakened(rng, evidence.faded, evidence.faded_saturation, evidence.full_saturation),
            )
        )
    return tuple(placed)


def _colour(rng: np.random.Generator, category: str, typical: float) -> str:
    """The habitual colour with probability `typical`, else any other; uniform over all where `typical` is 0."""
    if typical == 0.0:
        return COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))]
    habitual = TYPICAL_COLOUR[category]
    if rng.random() < typical:
        return habitual
    others = [name for name in COLOUR_NAMES if name != habitual]
    return others[int(rng.integers(len(others)))]


def _weakened(rng: np.random.Generator, chance: float, weak: tuple[float, float], strong: tuple[float, float]) -> float:
    low, high = weak if rng.random() < chance else strong
    return float(rng.uniform(low, high))


def absent_partners(scene: Scene) -> tuple[str, ...]:
    """Categories at home here that are missing although their habitual partner is in the picture."""
    here = residents(scene.background)
    return tuple(name for name in here if name not in scene.present and PARTNER[name] in scene.present)
