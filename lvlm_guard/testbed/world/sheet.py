"""Scenes as one picture, each enlarged over its true caption."""

from __future__ import annotations

from collections.abc import Sequence
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


def draw_sheet(scenes: Sequence[Scene]) -> Image.Image:
    """All scenes in rows of six, four times their size; the same scenes give the same pixels.

    Raises:
        InputError: There is no scene to draw.
    """
    if not scenes:
        raise InputError("a sheet needs at least one scene.")
    pen = _pen(Image.new("RGB", (1, 1)))
    notes = [_note(scene, pen) for scene in scenes]
    columns = min(COLUMNS, len(scenes))
    height = TILE + GAP + LINE * max(len(lines) for lines in notes) + GAP
    size = (GAP + columns * (TILE + GAP), GAP + ceil(len(scenes) / columns) * height)
    sheet = Image.new("RGB", size, PAPER)
    for number, (scene, lines) in enumerate(zip(scenes, notes, strict=True)):
        row, column = divmod(number, columns)
        _place(sheet, scene, lines, (GAP + column * (TILE + GAP), GAP + row * height))
    return sheet


def _pen(sheet: Image.Image) -> ImageDraw.ImageDraw:
    pen = ImageDraw.Draw(sheet)
    pen.font = ImageFont.load_default(size=13)
    return pen


def _place(sheet: Image.Image, scene: Scene, lines: Sequence[str], corner: tuple[int, int]) -> None:
    left, top = corner
    sheet.paste(scene.picture.resize((TILE, TILE), Image.Resampling.NEAREST), corner)
    pen = _pen(sheet)
    for number, line in enumerate(lines):
        pen.text((left, top + TILE + GAP // 2 + LINE * number), line, fill=INK if number else FAINT)


def _note(scene: Scene, pen: ImageDraw.ImageDraw) -> list[str]:
    """The scene's name, its true caption, and the habit it breaks."""
    lines = [scene.name, *_wrapped(caption(scene), pen)]
    if scene.broken is not None:
        lines += _wrapped(f"({oddity(scene.broken)})", pen)
    return lines


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
