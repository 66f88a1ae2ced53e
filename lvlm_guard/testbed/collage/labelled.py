"""Collages as labelled pictures: every copy of a thing with its box, and its colour where it is tinted."""

from __future__ import annotations

from pathlib import Path

from lvlm_guard.strategy.fitters import LabelledObject, LabelledPicture
from lvlm_guard.testbed.collage.world.picture_parts import open_pictures
from lvlm_guard.testbed.collage.world.pictures import ThingPictures
from lvlm_guard.testbed.collage.world.scenes import CollageScene, Copy, ThingGroup
from lvlm_guard.testbed.collage.world.splits import RENDERING, scene

SPLIT = "flat"
"""Scenes without habits, so that a fit on them learns none."""
CALIBRATION = "calibration"


def label_scenes(split: str, count: int, seed: int = 0, folder: Path | None = None) -> list[LabelledPicture]:
    """Return the first scenes of a split with all that they show.

    Args:
        split: One of `SPLITS`.
        count: How many.
        seed: The seed of the split.
        folder: The folder of the parts; by default the usual one.

    Raises:
        InputError: There is no such split, or its pictures are not there.
    """
    scenes = [scene(split, index, seed) for index in range(count)]
    pictures = open_pictures(RENDERING[split], folder)
    return [label_scene(collage, pictures) for collage in scenes]


def label_scene(collage: CollageScene, pictures: ThingPictures) -> LabelledPicture:
    """Return one scene with all that it shows."""
    labels = (_label(group, copy, pictures) for group in collage.groups for copy in group.copies)
    return LabelledPicture(collage.draw(pictures), tuple(labels))


def _label(group: ThingGroup, copy: Copy, pictures: ThingPictures) -> LabelledObject:
    height, width = pictures.cut_out(group.name, copy.side).shape[:2]
    box = (float(copy.left), float(copy.top), float(copy.left + width), float(copy.top + height))
    return LabelledObject(group.name, box, (group.colour,) if group.colour else ())
