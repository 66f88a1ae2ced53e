"""Drawn scenes as labelled pictures: every object with its box and colour."""

from __future__ import annotations

from lvlm_guard.strategy.fitters import LabelledObject, LabelledPicture
from lvlm_guard.testbed.world.compose import SceneObject
from lvlm_guard.testbed.world.drawing import CELL
from lvlm_guard.testbed.world.scenes import Scene, scenes

SPLIT = "flat"
"""Scenes without habits, so that a fit on them learns none."""
CALIBRATION = "calibration"


def label_scenes(split: str, count: int, seed: int = 0) -> list[LabelledPicture]:
    """Return scenes of a split with all that they show."""
    return [label_scene(scene) for scene in scenes(split, count, seed)]


def label_scene(scene: Scene) -> LabelledPicture:
    """Return one scene with all that it shows."""
    return LabelledPicture(scene.picture, tuple(_label(thing) for thing in scene.objects))


def _label(thing: SceneObject) -> LabelledObject:
    top, left = (float(at * CELL + by) for at, by in zip(thing.cell, thing.offset, strict=True))
    return LabelledObject(thing.category, (left, top, left + thing.size, top + thing.size), (thing.colour,))
