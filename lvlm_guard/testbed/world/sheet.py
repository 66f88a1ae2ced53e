"""Scenes as one picture, each enlarged over its true caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil

from PIL import Image, ImageDraw, ImageFont

from lvlm_guard.errors import InputError
from lvlm_guard.testbed.world.compose import BrokenHabit
from lvlm_guard.testbed.world.drawing import SIDE
from lvlm_guard.testbed.world.language import caption
from lvlm_guard.testbed.world.scenes import Scene

SCALE = 4
TILE = SIDE * SCALE
COLUMNS = 6
GAP = 14
LINE = 17
PAPER, INK, FAINT = (250, 250, 248), (28, 28, 30), (110, 110, 115)


@dataclass(frozen=True)
class Tile:
    """A picture of `TILE` pixels a side, and what is written under it.

    Args:
        picture: RGB.
        name: Written faintly.
        lines: Texts, each wrapped to the width of the picture.
    """

    picture: Image.Image
    name: str
    lines: Sequence[str]


def draw_sheet(scenes: Sequence[Scene]) -> Image.Image:
    """All scenes in rows of six, four times their size; the same scenes give the same pixels.

    Raises:
        InputError: There is no scene to draw.
    """
    return draw_tiles([_tile(scene) for scene in scenes])


def _tile(scene: Scene) -> Tile:
    picture = scene.picture.resize((TILE, TILE), Image.Resampling.NEAREST)
    broken = () if scene.broken is None else (f"({oddity(scene.broken)})",)
    return Tile(picture, scene.name, (caption(scene), *broken))


def draw_tiles(tiles: Sequence[Tile]) -> Image.Image:
    """Return all tiles in rows of six.

    Raises:
        InputError: There is none.
    """
    if not tiles:
        raise InputError("a sheet needs at least one scene.")
    pen = _pen(Image.new("RGB", (1, 1)))
    notes = [[tile.name, *(line for text in tile.lines for line in _wrapped(text, pen))] for tile in tiles]
    columns = min(COLUMNS, len(tiles))
    height = TILE + GAP + LINE * max(len(lines) for lines in notes) + GAP
    size = (GAP + columns * (TILE + GAP), GAP + ceil(len(tiles) / columns) * height)
    sheet = Image.new("RGB", size, PAPER)
    for number, (tile, lines) in enumerate(zip(tiles, notes, strict=True)):
        row, column = divmod(number, columns)
        _place(sheet, tile.picture, lines, (GAP + column * (TILE + GAP), GAP + row * height))
    return sheet


def _pen(sheet: Image.Image) -> ImageDraw.ImageDraw:
    pen = ImageDraw.Draw(sheet)
    pen.font = ImageFont.load_default(size=13)
    return pen


def _place(sheet: Image.Image, picture: Image.Image, lines: Sequence[str], corner: tuple[int, int]) -> None:
    left, top = corner
    sheet.paste(picture, corner)
    pen = _pen(sheet)
    for number, line in enumerate(lines):
        pen.text((left, top + TILE + GAP // 2 + LINE * number), line, fill=INK if number else FAINT)


def oddity(broken: BrokenHabit) -> str:
    """Which habit a scene breaks, in a few words."""
    return _BREAKS[broken.level].format(broken)


_BREAKS = {
    "object": "{0.subject} without its {0.expected}",
    "attribute": "{0.subject} not {0.expected}",
    "relation": "{0.subject} right of {0.expected}",
}


def _wrapped(text: str, pen: ImageDraw.ImageDraw) -> list[str]:
    lines: list[str] = []
    for word in text.replace(" ,", ",").replace(" .", ".").split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and pen.textlength(longer) <= TILE:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def png(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
