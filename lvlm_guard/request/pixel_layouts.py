"""Which numbers of a tensor of pixels belong to which image, whatever the layout: read from shapes, grids, sizes and masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import StrategyRefused
from lvlm_guard.protocols import Config

PieceIndex: TypeAlias = "tuple[Any, ...]"
"""Where one piece of an image lies in its tensor, without what only fills up the batch."""
CHANNELS = (1, 3)
GRIDS = ("grid", "target_sizes", "spatial_shapes")
"""Parts of the names of inputs that count the patches of each image along each axis."""
ROWS_AND_TILES = 2
"""Axes before the channels where a row has several tiles, of one image or of several."""
TILE_COUNTS = ("num_patches", "num_crops", "num_local_patches")
"""Endings of the names of inputs that count the tiles of each image."""


@dataclass(frozen=True)
class PixelLayout:
    """Where the images of one tensor of pixels lie.

    Args:
        images: The pieces of each image: its tiles, or all its patches as one piece.
        packed: Whether the pieces are patches, which are no pictures.
    """

    images: tuple[tuple[PieceIndex, ...], ...]
    packed: bool = False


def read_layout(
    name: str, pixels: Tensor, inputs: Mapping[str, Any], tokens_by_row: Sequence[Sequence[int]] = ()
) -> PixelLayout:
    """Return where the images of a tensor of pixels lie.

    Args:
        name: Name of the model input; patches that begin with their places are known by it.
        pixels: `[images, channels, height, width]`; `[rows, tiles, channels, height, width]`, with more axes before the tiles
            or not; `[images, patches, numbers]`; or the patches of all images, `[patches, ...]` or `[1, ..., patches]`.
        inputs: All model inputs: grids, sizes and masks among them say how pixels lie.
        tokens_by_row: Placeholders of each image of each request, in order; empty where the requests are unknown.

    Raises:
        StrategyRefused: Nothing tells which patches belong to which image.
    """
    if name == anatomy.PLACED_PATCHES:
        ends = [_last_true(image[:, 0] > 0) for image in pixels]
        numbers = slice(len(("row", "column")), None)
        return PixelLayout(
            tuple(((image, slice(0, end), numbers),) for image, end in enumerate(ends) if end), packed=True
        )
    tokens = list(itertools.chain(*tokens_by_row))
    related = {key: value for key, value in inputs.items() if ("video" in key) == ("video" in name)}
    if (grid := read_grid(pixels.shape[0], related)) is not None:
        return PixelLayout(tuple(((part,),) for part in _as_slices(grid)), packed=True)
    side_by_side = pixels.shape[0] == 1 and pixels.ndim > 3  # noqa: PLR2004 - with a height, the patches along the width
    if side_by_side and (grid := read_grid(pixels.shape[-1], related, divides=True)) is not None:
        return PixelLayout(tuple(((..., part),) for part in _as_slices(grid)), packed=True)
    if pixels.ndim <= 2 or _has_channels_last(pixels):  # noqa: PLR2004 - a matrix of patches
        shares = split_by_tokens(name, pixels, tokens, len(tokens_by_row))
        return PixelLayout(tuple(((part,),) for part in _as_slices(shares)), packed=True)
    pieces = [(*index, *_read_extent(index, pixels, related)) for index in _list_tiles(pixels)]
    groups = _count_tiles(pixels, related, tokens_by_row)
    return PixelLayout(tuple(_group(pieces, groups)), packed=pixels.ndim == 3)  # noqa: PLR2004 - images of patches


def split_by_tokens(name: str, values: Tensor, tokens: Sequence[int], rows: int) -> list[int]:
    """Return how many entries of values `[all images, ...]` each image takes, by its placeholders; all of them in a single row.

    Raises:
        StrategyRefused: The placeholders do not tell, and there are several rows.
    """
    counts = _share(values.shape[0], tokens)
    if counts is None and rows != 1:
        raise StrategyRefused(
            f"{name} {tuple(values.shape)} hold all images of the batch, and nothing tells which part is whose, so they cannot "
            "be edited in a batch: pass one row at a time."
        )
    return [values.shape[0]] if counts is None else counts


def view_frames(patches: Tensor, config: Config) -> tuple[Tensor, bool]:
    """Return patches `[patches, ...]` as `[patches, channels, frames, numbers]`, and whether every frame repeats the first.

    A still image fills the frames of a patch by repetition; where frames lie inside a patch differs between models. They are
    returned as they are where the config names no frames.
    """
    flat = patches.flatten(1)
    layout = anatomy.packed_frames(config, flat.shape[-1])
    if layout is None:
        return patches, False
    channels, frames = layout
    views = [flat.reshape(len(flat), outer, frames, -1) for outer in (channels, 1, flat.shape[-1] // frames)]
    still = next((view for view in views if frames > 1 and bool((view == view[:, :, :1]).all())), None)
    return (views[0], False) if still is None else (still, True)


def read_grid(length: int, related: Mapping[str, Any], *, divides: bool = False) -> list[int] | None:
    """Return how much of an axis of patches each image takes, by a grid of `[images, 2]` or `[images, 3]`."""
    for name, value in related.items():
        named = any(mark in name for mark in GRIDS) and isinstance(value, Tensor)
        if not named or value.ndim != 2 or value.shape[1] not in (2, 3):  # noqa: PLR2004 - height and width, with time
            continue
        counts = [int(count) for count in value.long().prod(-1).tolist()]
        total = sum(counts)
        if total and (total == length or (divides and length % total == 0)):
            return [count * (length // total) for count in counts]
    return None


def _has_channels_last(pixels: Tensor) -> bool:
    """Whether a tensor holds patches `[..., height, width, channels]`."""
    return pixels.ndim > 3 and pixels.shape[-3] not in CHANNELS and pixels.shape[-1] in CHANNELS  # noqa: PLR2004


def _as_slices(counts: Sequence[int]) -> list[slice]:
    ends = list(itertools.accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _share(length: int, tokens: Sequence[int]) -> list[int] | None:
    """Return how many of `length` entries each image takes, in proportion to its placeholders; None where that is no number."""
    if length == len(tokens):
        return [1] * length
    total = sum(tokens)
    if not total or any(count * length % total for count in tokens):
        return None
    return [count * length // total for count in tokens]


def _list_tiles(pixels: Tensor) -> list[tuple[int, ...]]:
    """Return the index of every tile `[channels, height, width]`, or of every image of patches `[patches, numbers]`."""
    leading = pixels.shape[: max(pixels.ndim - 3, 1)]
    return list(itertools.product(*map(range, leading)))


def _count_tiles(pixels: Tensor, related: Mapping[str, Any], tokens_by_row: Sequence[Sequence[int]]) -> list[int]:
    """Return how many tiles each image has: what lies along the axis before the channels, unless images lie there too."""
    leading = pixels.shape[: max(pixels.ndim - 3, 1)]
    tokens = list(itertools.chain(*tokens_by_row))
    if len(leading) == ROWS_AND_TILES and len(tokens_by_row) == leading[0] < len(tokens):
        return [count for row, counts in zip(pixels, tokens_by_row, strict=True) for count in _share_row(row, counts)]
    if len(leading) > 1:
        return [leading[-1]] * leading[:-1].numel()
    for name, value in related.items():
        if name.endswith(TILE_COUNTS) and isinstance(value, Tensor) and int(value.sum()) == leading[0]:
            return list(map(int, value.flatten().tolist()))
    return _share(leading[0], tokens) or [1] * leading[0]


def _share_row(tiles: Tensor, tokens: Sequence[int]) -> list[int]:
    """Return how many tiles each image of a row has, by its placeholders, and how many fill up the batch behind them."""
    filled = _last_true(tiles.flatten(1).any(1))
    shares = (_share(filled, tokens) if filled else None) or [filled]
    return [*shares, len(tiles) - filled]


def _group(pieces: Sequence[PieceIndex], counts: Sequence[int]) -> Iterator[tuple[PieceIndex, ...]]:
    supply = iter(pieces)
    for count in counts:
        yield tuple(itertools.islice(supply, count))


def _read_extent(index: tuple[int, ...], pixels: Tensor, related: Mapping[str, Any]) -> tuple[slice, ...]:
    """Return the part of a tile that is not padding, as slices of its axes from the channels on; none where all is."""
    mask = _find_mask(pixels, related)
    ends = _find_size(index, pixels, related) if mask is None else _find_ends(mask[index])
    if ends is None:
        return ()
    sides = tuple(slice(0, end) for end in ends)
    return sides if pixels.ndim == 3 else (slice(None), *sides)  # noqa: PLR2004 - images of patches


def _find_mask(pixels: Tensor, related: Mapping[str, Any]) -> Tensor | None:
    """Return the mask of what is no padding: of pixels `[..., height, width]`, or of patches `[images, patches]`."""
    packed = pixels.ndim == 3  # noqa: PLR2004 - images of patches
    shape = pixels.shape[:2] if packed else (*pixels.shape[:-3], *pixels.shape[-2:])
    for name, value in related.items():
        if not isinstance(value, Tensor):
            continue
        if "pixel" in name and "mask" in name and value.shape == shape:
            return value.bool()
        if packed and name.endswith("position_ids") and "image" in name and value.shape[:2] == shape:
            return (value >= 0).flatten(2).all(-1)
    return None


def _find_ends(real: Tensor) -> list[int]:
    """Return where the last true entry of a mask stands on each of its axes."""
    if real.ndim == 1:
        return [_last_true(real)]
    return [_last_true(real.any(1)), _last_true(real.any(0))]


def _last_true(values: Tensor) -> int:
    places = values.nonzero()
    return int(places[-1]) + 1 if len(places) else 0


def _find_size(index: tuple[int, ...], pixels: Tensor, related: Mapping[str, Any]) -> list[int] | None:
    """Return height and width of an image that is padded to the largest of the batch, by its size in pixels."""
    sizes = related.get("image_sizes")
    if pixels.ndim != 4 or not isinstance(sizes, Tensor) or sizes.shape != (len(pixels), 2):  # noqa: PLR2004
        return None
    height, width = (int(side) for side in sizes[index[0]].tolist())
    image = pixels[index]
    filled = bool(image[:, height:].any()) or bool(image[:, :, width:].any())
    return None if filled or not (height and width) else [min(height, image.shape[1]), min(width, image.shape[2])]
