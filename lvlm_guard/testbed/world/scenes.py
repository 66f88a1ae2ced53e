"""Scenes with known contents, drawn on demand and the same for the same seed everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.world import compose, drawing
from lvlm_guard.testbed.world.compose import LEVELS, BrokenHabit, SceneObject
from lvlm_guard.testbed.world.habits import BACKGROUNDS, COLOURS, MILD, PARTNER, EvidenceStrength, Habits, residents

SPLITS: dict[str, int] = {"train": 1, "calibration": 2, "iid": 3, "counterfactual": 4, "flat": 5}
"""The splits and the number each puts into its random stream, which is what keeps them apart.

`train` and `iid` follow the habits. Every `counterfactual` scene breaks exactly one of them, in turn a pair, a colour
and an order, and keeps all the rest. `calibration`, on which settings are chosen, holds both kinds in turn. `flat` has
no habits at all: seeing and naming are learnt on it.
"""

HABITS = Habits()
EVIDENCE = EvidenceStrength()


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
    broken: BrokenHabit | None = None
    """The one habit a counterfactual scene breaks."""

    @property
    def name(self) -> str:
        """The name of the scene in results: split, seed and index."""
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


def scene(
    split: str, index: int, seed: int = 0, *, habits: Habits = HABITS, evidence: EvidenceStrength | None = None
) -> Scene:
    """Scene number `index` of a split, whatever other scenes were made before it."""
    rng = np.random.default_rng(_stream(split, seed, index))
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    if evidence is None:
        evidence = MILD if split == "flat" else EVIDENCE
    level, broken = _broken_level(split, index), None
    if split == "flat":
        objects = compose.flat(rng, evidence)
    elif level:
        objects, broken = compose.counterfactual(rng, background, level, habits, evidence)
    else:
        objects = compose.habitual(rng, background, habits, evidence)
    noise = compose.weakened(rng, evidence.noisy, evidence.noisy_sigma, evidence.quiet_sigma)
    return Scene(split, seed, index, background, objects, noise, broken)


def _broken_level(split: str, index: int) -> str | None:
    if split == "counterfactual":
        return LEVELS[index % len(LEVELS)]
    if split == "calibration" and index % 2:
        return LEVELS[index // 2 % len(LEVELS)]
    return None


def _stream(split: str, seed: int, index: int) -> tuple[int, int, int]:
    if split not in SPLITS:
        raise TestbedError(f"scenes: no split named {split!r}. Known: {', '.join(SPLITS)}.")
    if seed < 0 or index < 0:
        raise TestbedError(f"scenes: seed and index must not be negative, got seed {seed}, index {index}.")
    return SPLITS[split], seed, index


def absent_partners(scene: Scene) -> tuple[str, ...]:
    """Categories at home here that are missing although their habitual partner is in the picture."""
    at_home = residents(scene.background)
    return tuple(name for name in at_home if name not in scene.present and PARTNER[name] in scene.present)
