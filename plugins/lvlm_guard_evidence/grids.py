"""Where in its picture each image token lies, as far as the model inputs say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GRID = "image_grid_thw"
PIXELS = "pixel_values"
IMAGES_AND_PIXELS = 4
TILES_AND_PIXELS = 5


@dataclass(frozen=True)
class PictureTokens:
    """The image tokens of one picture.

    Args:
        start: The first of them among the image tokens of its row.
        count: How many there are.
        rows: Rows of the grid that the first `rows * columns` of them fill, line by line; 0 where no grid is known.
        columns: Its columns.
    """

    start: int
    count: int
    rows: int = 0
    columns: int = 0

    def places(self) -> Tensor:
        """Return row and column of each token as shares of the picture `[count, 2]`, NaN where they are unknown."""
        places = torch.full((self.count, 2), torch.nan, device="cpu")
        if self.rows and self.columns:
            index = torch.arange(self.rows * self.columns, device="cpu")
            places[: len(index), 0] = (index // self.columns + 0.5) / self.rows
            places[: len(index), 1] = (index % self.columns + 0.5) / self.columns
        return places


def find_pictures(inputs: Mapping[str, Any], config: Any, image: Tensor) -> list[list[PictureTokens]]:
    """Return the pictures of each row, in the order of the prompt.

    Packed patches come with their grids. Pictures of one size have equal numbers of tokens, which fill a grid of the shape of the
    pixels where one does. Of tiles, the first grid is the whole picture where the tokens begin with it. Otherwise, and where
    several parts stand side by side with no text between them, a row counts as one picture without a grid.

    Args:
        inputs: Model inputs.
        config: Config of the model.
        image: Which positions are image tokens, bool `[rows, length]`.
    """
    counts = image.sum(1).tolist()
    pictures = _from_grids(inputs, config, counts) or _from_pixels(inputs, config, counts)
    undivided = [[PictureTokens(0, count)] if count else [] for count in counts]
    if pictures is None:
        return undivided
    is_told_apart = isinstance(inputs.get(GRID), Tensor)
    runs = (image[:, 1:] & ~image[:, :-1]).sum(1) + image[:, 0]
    return [
        divided if is_told_apart or len(divided) <= int(run) else single
        for divided, single, run in zip(pictures, undivided, runs, strict=True)
    ]


def _from_grids(inputs: Mapping[str, Any], config: Any, counts: list[int]) -> list[list[PictureTokens]] | None:
    grid = inputs.get(GRID)
    if not isinstance(grid, Tensor):
        return None
    merge = getattr(getattr(config, "vision_config", None), "spatial_merge_size", None) or 1
    sizes = [
        (frames * (high // merge) * (wide // merge), high // merge if frames == 1 else 0, wide // merge)
        for frames, high, wide in grid.tolist()
    ]
    return _deal(sizes, counts)


def _from_pixels(inputs: Mapping[str, Any], config: Any, counts: list[int]) -> list[list[PictureTokens]] | None:
    pixels = inputs.get(PIXELS)
    if not isinstance(pixels, Tensor) or pixels.ndim not in (IMAGES_AND_PIXELS, TILES_AND_PIXELS):
        return None
    images, (high, wide) = pixels.shape[0], pixels.shape[-2:]
    if pixels.ndim == TILES_AND_PIXELS and pixels.shape[1] > 1:
        return _from_tiles(images, (high, wide), config, counts)
    total = sum(counts)
    if not images or total % images:
        return None
    each = total // images
    rows, columns = _fill(each, high, wide)
    return _deal([(each, rows, columns)] * images, counts)


def _fill(count: int, high: int, wide: int) -> tuple[int, int]:
    """Return rows and columns of a grid of so many tokens in the shape of the pixels; zeros where there is none."""
    rows = round(math.sqrt(count * high / wide))
    if rows and count % rows == 0 and abs((count // rows) * high - rows * wide) < max(high, wide):
        return rows, count // rows
    return 0, 0


def _from_tiles(images: int, size: tuple[int, int], config: Any, counts: list[int]) -> list[list[PictureTokens]] | None:
    """Take each row as one picture whose tokens begin with the whole of it, where the config tells how many those are.

    Only models that lay their tiles out in one piece put the whole picture first; they name the resolutions they choose from.
    """
    side = getattr(getattr(config, "vision_config", None), "patch_size", None)
    is_laid_out = getattr(config, "image_grid_pinpoints", None) and images == sum(map(bool, counts))
    if not isinstance(side, int) or not is_laid_out:
        return None
    if getattr(config, "vision_feature_select_strategy", "default") != "default":
        return None
    rows, columns = size[0] // side, size[1] // side
    if any(0 < count < rows * columns for count in counts):
        return None
    return [[PictureTokens(0, count, rows, columns)] if count else [] for count in counts]


def _deal(sizes: list[tuple[int, int, int]], counts: list[int]) -> list[list[PictureTokens]] | None:
    """Return pictures dealt to the rows in order; None where they do not fit the rows' numbers of tokens."""
    left, dealt = list(sizes), []
    for count in counts:
        start, pictures = 0, []
        while start < count and left:
            size, rows, columns = left.pop(0)
            pictures.append(PictureTokens(start, size, rows, columns))
            start += size
        if start != count:
            return None
        dealt.append(pictures)
    return None if left else dealt
