"""Collages as one picture, each over its true caption."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lvlm_guard.testbed.collage.world.captions import caption
from lvlm_guard.testbed.collage.world.picture_parts import open_pictures
from lvlm_guard.testbed.collage.world.pictures import ThingPictures
from lvlm_guard.testbed.collage.world.scenes import CollageScene
from lvlm_guard.testbed.collage.world.splits import RENDERING, scene
from lvlm_guard.testbed.world.sheet import TILE, Tile, draw_tiles


def draw_sheet(split: str, count: int, seed: int = 0, folder: Path | None = None) -> Image.Image:
    """Return the first scenes of a split in rows of six; the same arguments give the same pixels.

    Args:
        split: One of `SPLITS`.
        count: How many.
        seed: The seed of the split.
        folder: The folder of the parts; by default the usual one.

    Raises:
        InputError: There is no such split, or its pictures are not there.
    """
    drawn = [scene(split, index, seed) for index in range(count)]
    pictures = open_pictures(RENDERING[split], folder)
    return draw_tiles([_tile(collage, pictures) for collage in drawn])


def _tile(drawn: CollageScene, pictures: ThingPictures) -> Tile:
    picture = drawn.draw(pictures).resize((TILE, TILE), Image.Resampling.BICUBIC)
    return Tile(picture, drawn.name, (caption(drawn),))
