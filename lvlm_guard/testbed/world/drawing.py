"""Draw the objects and backgrounds of a scene: 64x64 pixels, four by four cells of 16."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 64
CELL = 16
CELLS = SIDE // CELL
SIZES = (12, 13, 14, 15, 16)

Pixels = NDArray[np.float32]
Pen = ImageDraw.ImageDraw

_GRID = 128
"""Side of the square every outline is drawn in before it is scaled down to an object's size."""


def _mug(pen: Pen) -> None:
    pen.rectangle((10, 24, 80, 120), fill=255)
    pen.ellipse((58, 36, 124, 104), outline=255, width=18)


def _spoon(pen: Pen) -> None:
    pen.ellipse((34, 2, 94, 66), fill=255)
    pen.rectangle((55, 60, 73, 126), fill=255)


def _pan(pen: Pen) -> None:
    pen.ellipse((2, 44, 82, 124), fill=255)
    pen.line((66, 60, 122, 8), fill=255, width=20)


def _egg(pen: Pen) -> None:
    pen.ellipse((22, 6, 106, 122), fill=255)


def _table(pen: Pen) -> None:
    pen.rectangle((2, 20, 126, 44), fill=255)
    pen.rectangle((10, 44, 30, 124), fill=255)
    pen.rectangle((98, 44, 118, 124), fill=255)


def _clock(pen: Pen) -> None:
    pen.ellipse((4, 4, 124, 124), outline=255, width=17)
    pen.line((64, 66, 64, 26), fill=255, width=15)
    pen.line((60, 64, 96, 64), fill=255, width=15)


def _boat(pen: Pen) -> None:
    pen.polygon(((2, 80), (126, 80), (100, 122), (28, 122)), fill=255)
    pen.polygon(((62, 4), (62, 74), (114, 74)), fill=255)


def _anchor(pen: Pen) -> None:
    pen.ellipse((46, 0, 82, 36), outline=255, width=12)
    pen.rectangle((55, 30, 73, 124), fill=255)
    pen.rectangle((34, 44, 94, 58), fill=255)
    pen.arc((6, 20, 122, 124), 15, 165, fill=255, width=18)


def _fish(pen: Pen) -> None:
    pen.ellipse((2, 32, 90, 96), fill=255)
    pen.polygon(((76, 64), (126, 24), (126, 104)), fill=255)


def _starfish(pen: Pen) -> None:
    turns = np.arange(10) * np.pi / 5 - np.pi / 2
    reach = np.where(np.arange(10) % 2 == 0, 64, 24)
    pen.polygon([(64 + r * np.cos(t), 66 + r * np.sin(t)) for r, t in zip(reach, turns, strict=True)], fill=255)


def _flag(pen: Pen) -> None:
    pen.rectangle((12, 2, 28, 126), fill=255)
    pen.rectangle((28, 6, 122, 66), fill=255)


def _barrel(pen: Pen) -> None:
    for top in (4, 48, 92):
        pen.rectangle((18, top, 110, top + 30), fill=255)


def _tree(pen: Pen) -> None:
    pen.polygon(((64, 2), (120, 88), (8, 88)), fill=255)
    pen.rectangle((50, 88, 78, 126), fill=255)


def _ladder(pen: Pen) -> None:
    pen.rectangle((26, 2, 42, 126), fill=255)
    pen.rectangle((86, 2, 102, 126), fill=255)
    for top in (18, 56, 94):
        pen.rectangle((42, top, 86, top + 16), fill=255)


def _flower(pen: Pen) -> None:
    for x, y in ((64, 28), (28, 64), (100, 64), (64, 100)):
        pen.ellipse((x - 28, y - 28, x + 28, y + 28), fill=255)
    pen.ellipse((46, 46, 82, 82), fill=0)


def _kite(pen: Pen) -> None:
    pen.polygon(((64, 0), (112, 46), (64, 92), (16, 46)), fill=255)
    pen.line((64, 88, 84, 106, 60, 126), fill=255, width=12)


def _gate(pen: Pen) -> None:
    pen.arc((8, 6, 120, 118), 180, 360, fill=255, width=22)
    pen.rectangle((8, 62, 30, 126), fill=255)
    pen.rectangle((98, 62, 120, 126), fill=255)


def _mushroom(pen: Pen) -> None:
    pen.pieslice((2, 6, 126, 130), 180, 360, fill=255)
    pen.rectangle((46, 68, 82, 124), fill=255)


def _car(pen: Pen) -> None:
    pen.rectangle((2, 54, 126, 90), fill=255)
    pen.polygon(((28, 54), (44, 26), (88, 26), (104, 54)), fill=255)
    for left in (14, 80):
        pen.ellipse((left, 78, left + 36, 114), fill=255)


def _cone(pen: Pen) -> None:
    pen.polygon(((64, 2), (84, 56), (44, 56)), fill=255)
    pen.polygon(((38, 72), (90, 72), (100, 104), (28, 104)), fill=255)
    pen.rectangle((8, 108, 120, 126), fill=255)


def _house(pen: Pen) -> None:
    pen.polygon(((64, 2), (126, 54), (2, 54)), fill=255)
    pen.rectangle((16, 54, 112, 124), fill=255)
    pen.rectangle((50, 76, 80, 124), fill=0)


def _moon(pen: Pen) -> None:
    pen.ellipse((8, 4, 128, 124), fill=255)
    pen.ellipse((46, -6, 146, 94), fill=0)


def _bicycle(pen: Pen) -> None:
    for left in (0, 70):
        pen.ellipse((left, 58, left + 58, 116), outline=255, width=14)
    pen.line((28, 88, 52, 40, 98, 88), fill=255, width=12)


def _sign(pen: Pen) -> None:
    pen.line((8, 8, 120, 120), fill=255, width=26)
    pen.line((8, 120, 120, 8), fill=255, width=26)


_OUTLINES: dict[str, Callable[[Pen], None]] = {
    "mug": _mug, "spoon": _spoon, "pan": _pan, "egg": _egg, "table": _table, "clock": _clock,
    "boat": _boat, "anchor": _anchor, "fish": _fish, "starfish": _starfish, "flag": _flag, "barrel": _barrel,
    "tree": _tree, "ladder": _ladder, "flower": _flower, "kite": _kite, "gate": _gate, "mushroom": _mushroom,
    "car": _car, "cone": _cone, "house": _house, "moon": _moon, "bicycle": _bicycle, "sign": _sign,
}  # fmt: skip


@cache
def outline(category: str, size: int) -> Pixels:
    """How much of each pixel the object covers, 0 to 1, shape (size, size)."""
    sheet = Image.new("L", (_GRID, _GRID), 0)
    _OUTLINES[category](ImageDraw.Draw(sheet))
    scaled = sheet.resize((size, size), Image.Resampling.BOX)
    return (np.asarray(scaled) / 255).astype(np.float32)


@cache
def backdrop(background: str) -> Pixels:
    """The empty scene, shape (64, 64, 3), values 0 to 1: dull and darker than every object colour."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    pattern, dark, light = {
        "kitchen": ((rows // 8 + columns // 8) % 2 == 0, (0.34, 0.29, 0.24), (0.42, 0.36, 0.29)),
        "harbour": (((rows + 2 * np.sin(columns / 5)) // 6) % 2 == 0, (0.19, 0.27, 0.36), (0.24, 0.33, 0.43)),
        "garden": ((rows * 7 + columns * 5) % 13 < 4, (0.21, 0.30, 0.20), (0.28, 0.37, 0.25)),
        "street": ((rows % 16 < 2) & (columns % 12 < 7), (0.27, 0.27, 0.29), (0.40, 0.40, 0.41)),
    }[background]
    canvas: Pixels = np.where(pattern[..., None], np.array(light, dtype=np.float32), np.array(dark, dtype=np.float32))
    canvas.setflags(write=False)
    return canvas


def stamp(canvas: Pixels, mask: Pixels, colour: Pixels, top: int, left: int) -> None:
    """Lay an object of this colour (3 values) on the canvas, in place; mask 1 covers what is under it."""
    size = mask.shape[0]
    under = canvas[top : top + size, left : left + size]
    under += mask[..., None] * (colour - under)


def faded(colour: tuple[float, float, float], saturation: float) -> Pixels:
    """The colour mixed with grey of the same brightness: saturation 1 leaves it untouched, 0 gives grey."""
    full = np.asarray(colour, dtype=np.float32)
    grey = np.float32(0.299 * full[0] + 0.587 * full[1] + 0.114 * full[2])
    return grey + np.float32(saturation) * (full - grey)
