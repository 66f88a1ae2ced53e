"""The drawings of a report: pictures, maps over them, a heat map of heads, and curves over layers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor

LONGEST = 448
"""Longest side of a picture in the page, in pixels."""
QUALITY = 90
"""Of pictures in JPEG."""
MOST_CELLS = 24
"""Cells along a side of a map; of a finer grid, means of neighbours are shown."""
SCALE = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))
"""Colours from low to high, dark to light, which those who tell few colours apart can read: stops of cividis (arXiv 1712.01662)."""


@dataclass(frozen=True)
class PagePicture:
    """A picture as a page holds it.

    Args:
        uri: Its data URI: a PNG where its pixels are shown as squares, else a JPEG, a tenth of the size.
        width: In pixels.
        height: In pixels.
        is_drawn: Whether it was so small from the start that its pixels are shown as squares.
    """

    uri: str
    width: int
    height: int
    is_drawn: bool


@dataclass(frozen=True)
class MapCell:
    """One cell of a map, in cells from the upper left.

    Args:
        x: Column.
        y: Row.
        value: Its figure.
        veil: How much of the picture is hidden, in [0, 1]; where figures have signs, how strong the colour is.
        sign: `up` or `down` where figures have signs, else empty.
    """

    x: int
    y: int
    value: float
    veil: float
    sign: str = ""


@dataclass(frozen=True)
class PictureMap:
    """A map over a picture.

    Args:
        kind: `attention`, `lens` or `occlusion`.
        base: Which picture it lies on: `view` or `picture`.
        columns: Columns of the grid as it is shown.
        rows: Rows.
        cells: Every cell.
        low: The least figure.
        high: The greatest.
        pooled: How many rows and columns of the grid each cell is the mean of.
    """

    kind: str
    base: str
    columns: int
    rows: int
    cells: tuple[MapCell, ...]
    low: float
    high: float
    pooled: tuple[int, int]

    @property
    def table(self) -> list[tuple[MapCell, ...]]:
        """The cells by row."""
        return [self.cells[row * self.columns : (row + 1) * self.columns] for row in range(self.rows)]

    @property
    def strongest(self) -> list[MapCell]:
        """The five cells of the greatest figures."""
        return sorted(self.cells, key=lambda cell: -abs(cell.value))[:5]


@dataclass(frozen=True)
class HeatCell:
    """One head of the heat map.

    Args:
        x: Left edge.
        y: Upper edge.
        layer: Layer, counted from 0.
        head: Head, counted from 0.
        value: Its figure.
        colour: Of the figure, from the scale.
        is_beyond: Whether the figure is beyond a threshold.
    """

    x: float
    y: float
    layer: int
    head: int
    value: float
    colour: str
    is_beyond: bool = False


@dataclass(frozen=True)
class HeatMap:
    """Layers by heads.

    Args:
        size: Side of a cell.
        width: Of the drawing.
        height: Of the drawing.
        cells: Every head.
        layers: Number of layers.
        heads: Greatest number of heads.
        high: The greatest figure, at the end of the scale.
    """

    size: float
    width: float
    height: float
    cells: tuple[HeatCell, ...]
    layers: int
    heads: int
    high: float


@dataclass(frozen=True)
class Curve:
    """A figure over layer outputs, in a drawing of 640 x 200.

    Args:
        points: x, y, layer output and figure of each.
    """

    points: tuple[tuple[float, float, int, float], ...]

    @property
    def path(self) -> str:
        """The points as an SVG polyline has them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in self.points)


def encode_picture(picture: Image.Image, longest: int = LONGEST) -> PagePicture:
    """Return a picture as the page holds it, made smaller where it is large."""
    is_drawn = max(picture.size) < LONGEST // 2
    kind = "png" if is_drawn else "jpeg"
    small = picture.convert("RGB")
    small.thumbnail((longest, longest))
    content = BytesIO()
    small.save(content, kind, optimize=True, **({} if is_drawn else {"quality": QUALITY}))
    text = b64encode(content.getvalue()).decode("ascii")
    return PagePicture(f"data:image/{kind};base64,{text}", *small.size, is_drawn)


def draw_map(kind: str, base: str, values: Sequence[float], grid: tuple[int, int]) -> PictureMap:
    """Return figures of a grid `[rows * columns]`, row by row, as a map.

    Figures of `occlusion` have signs: what falls stands for the word, what rises against it.
    """
    levels, pooled = pool(torch.tensor(list(values), dtype=torch.float64)[: grid[0] * grid[1]].reshape(grid))
    low, high = float(levels.min()), float(levels.max())
    is_signed = kind == "occlusion"
    reach = max(abs(low), abs(high)) if is_signed else high - low
    cells = [
        _shade(column, row, float(levels[row, column]), low, reach, is_signed=is_signed)
        for row in range(levels.shape[0])
        for column in range(levels.shape[1])
    ]
    return PictureMap(kind, base, levels.shape[1], levels.shape[0], tuple(cells), low, high, pooled)


def _shade(column: int, row: int, value: float, low: float, reach: float, *, is_signed: bool) -> MapCell:
    if is_signed:
        strength = abs(value) / reach if reach else 0.0
        return MapCell(column, row, value, 0.8 * strength, "up" if value >= 0 else "down")
    share = (value - low) / reach if reach else 1.0
    return MapCell(column, row, value, 0.85 * (1 - share))


def pool(levels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return a grid with at most `MOST_CELLS` cells a side, as means of neighbours, and how many of them go together."""
    down, across = (-(-side // MOST_CELLS) for side in levels.shape)
    if (down, across) == (1, 1):
        return levels, (1, 1)
    rows = torch.stack([part.mean(0) for part in levels.split(down, 0)])
    return torch.stack([part.mean(1) for part in rows.split(across, 1)], dim=1), (down, across)


def draw_heads(masses: Sequence[Sequence[float]]) -> HeatMap:
    """Return the attention of each head on the image as a heat map, a row for each layer."""
    values = {(layer, head): value for layer, row in enumerate(masses) for head, value in enumerate(row)}
    return draw_cells(values, max(values.values(), default=0.0))


def draw_cells(values: Mapping[tuple[int, int], float], high: float, threshold: float = float("inf")) -> HeatMap:
    """Return figures of heads by layer and head, counted from 0, as a heat map.

    Args:
        values: The figures.
        high: The figure at the end of the scale, which begins at 0.
        threshold: Cells beyond it are marked.
    """
    layers, heads = (1 + max(place[axis] for place in values) for axis in (0, 1))
    size = min(26.0, 640 / heads, 480 / layers)
    cells = [
        HeatCell(
            44 + head * size, 24 + layer * size, layer, head, value, find_colour(value / high if high else 0.0),
            value > threshold,
        )
        for (layer, head), value in values.items()
    ]  # fmt: skip
    width = max(44 + heads * size + 8, 220)
    return HeatMap(size, width, 24 + layers * size + 46, tuple(cells), layers, heads, high)


def find_colour(share: float) -> str:
    """Return the colour of a share of the scale, in [0, 1]."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    below = min(int(place), len(SCALE) - 2)
    weight = place - below
    mixed = (round(a + (b - a) * weight) for a, b in zip(SCALE[below], SCALE[below + 1], strict=True))
    return "#" + "".join(f"{level:02x}" for level in mixed)


def draw_curve(values: Sequence[float]) -> Curve:
    """Return figures in [0, 1] over layer outputs as a curve."""
    step = 580 / max(len(values) - 1, 1)
    return Curve(tuple((44 + step * number, 160 - 140 * value, number, value) for number, value in enumerate(values)))


def has_view(picture: Any, view: Any) -> bool:
    """Return whether the processor cut the picture, so that maps of image tokens must lie on what is left."""
    if view is None:
        return False
    shapes = [image.width / image.height for image in (picture, view)]
    return abs(shapes[0] / shapes[1] - 1) > TOLERANCE


TOLERANCE = 0.02
"""How far shapes may differ by rounding of their sides."""
