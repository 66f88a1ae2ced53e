"""Pictures of things in one rendering, as cut-outs to paste."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lvlm_guard.testbed.collage.world.drawing import Pixels, tint
from lvlm_guard.testbed.collage.world.things import NAMES

RENDERINGS: tuple[str, ...] = ("fluent", "noto")
"""The rendering of training and of scenes like them, and the other one."""


class ThingPictures:
    """One picture of each thing.

    Args:
        images: RGBA pictures by the name of the thing.
    """

    def __init__(self, images: Mapping[str, Image.Image]) -> None:
        self._images = {name: _crop(image) for name, image in images.items()}

    def cut_out(self, name: str, side: int, colour: str | None = None, *, mirrored: bool = False) -> Pixels:
        """Return a cut-out: float32, `[height, width, 4]`, from 0 to 1, its longer side of so many pixels.

        Args:
            name: The thing.
            side: Pixels of the longer side.
            colour: To tint it with; None leaves its own colours.
            mirrored: Whether left and right are swapped.
        """
        image = self._images[name]
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        cut = np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=np.float32) / np.float32(255)
        cut = cut[:, ::-1] if mirrored else cut
        return cut if colour is None else tint(cut, colour)


def _crop(image: Image.Image) -> Image.Image:
    """Take the transparent margin away."""
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    return image if box is None else image.crop(box)


def draw_stand_ins() -> ThingPictures:
    """Return shapes that stand in for pictures where there are none: one for each thing, the same everywhere."""
    return ThingPictures({name: draw_stand_in(name) for name in NAMES})


def draw_stand_in(name: str) -> Image.Image:
    """Draw a polygon with a spot whose corners and colours follow from the name."""
    digest = hashlib.sha256(name.encode()).digest()
    image = Image.new("RGBA", (64, 64))
    pen: Any = ImageDraw.Draw(image)
    corners = [(digest[2 * at] % 64, digest[2 * at + 1] % 64) for at in range(3 + digest[20] % 4)]
    pen.polygon([(0, 0), *corners, (63, 63)], fill=(*digest[21:24], 255))
    pen.ellipse((20, 20, 40, 40), fill=(*digest[24:27], 255))
    return image
