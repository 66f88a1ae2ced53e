"""The pixels of each picture in a batch, and digests of them that survive other devices, dtypes, rows and padding."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.request.pixel_layouts import read_grid

PixelPart = dict[str, Tensor]
"""Pixel inputs of one picture, and what places them, on the CPU: `[1, ...]`, or the patches of one picture."""
CASTS = (
    (),
    (torch.bfloat16,),
    (torch.float16,),
    (torch.bfloat16, torch.float16),
    (torch.float16, torch.bfloat16),
)
"""Dtypes that a batch may be cast to after it was made, one after the other; longer chains give the values of one of these."""
EIGHT_BITS = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
)
PLAIN = 8
"""Values that pixels may have and still be those of a plain drawing or of an empty picture."""
PLACING = ("pixel", "grid_thw", "image_sizes", "aspect_ratio", "num_crops", "spatial_shapes")
"""Parts of the names of inputs that say how pixels lie."""
TILED = 5
"""Axes of pixels that have tiles: pictures, tiles, channels, height, width."""


def split_pixels(inputs: Mapping[str, Any]) -> list[PixelPart]:
    """Return the pixels of a batch picture by picture, or in one piece where the layout does not say what belongs to which."""
    named = {name: value.detach().cpu() for name, value in inputs.items() if is_about_pixels(name, value)}
    pixels = {name for name, value in named.items() if anatomy.is_pixels(name, value)}
    if not pixels:
        return []
    sizes = {name: read_grid(len(named[name]), named) for name in pixels}
    split = {name: value.split(sizes.get(name) or 1) for name, value in named.items() if value.ndim}
    counts = {len(parts) for parts in split.values()}
    return (
        [dict(zip(split, parts, strict=True)) for parts in zip(*split.values(), strict=True)]
        if len(counts) == 1
        else [named]
    )


def is_about_pixels(name: str, value: Any) -> bool:
    """Whether a model input holds pixels or says where they lie; what depends on the text does not count."""
    return isinstance(value, Tensor) and (anatomy.is_pixels(name, value) or any(mark in name for mark in PLACING))


def join_parts(parts: list[PixelPart]) -> PixelPart:
    """Return the inputs that consist of some parts, with as many tiles as the largest; those of `split_pixels` give the batch back."""
    return {name: torch.cat(_pad_tiles([part[name] for part in parts])) for name in parts[0]}


def fit_tiles(value: Tensor, tiles: int) -> Tensor:
    """Return pixels `[pictures, tiles, channels, height, width]` with so many tiles, of which only empty ones come and go."""
    if value.ndim < TILED or value[:, tiles:].any():
        return value
    return torch.cat(
        [value[:, :tiles], value.new_zeros(len(value), max(tiles - value.shape[1], 0), *value.shape[2:])], 1
    )


def _pad_tiles(values: list[Tensor]) -> list[Tensor]:
    return [
        fit_tiles(value, max(each.shape[1] for each in values)) if value.ndim >= TILED else value for value in values
    ]


def is_blank(part: PixelPart) -> bool:
    """Whether a part only fills up a batch."""
    return not any(bool(value.any()) for name, value in part.items() if anatomy.is_pixels(name, value))


def digest_part(part: PixelPart, casts: Sequence[torch.dtype] = ()) -> bytes:
    """Return a digest of every value of a part, whatever its dtype, after some casts; empty tiles at its end do not count."""
    digest = hashlib.sha256()
    for name in sorted(part):
        counts = not (anatomy.is_pixels(name, part[name]) or part[name].is_floating_point())
        value = part[name].to(torch.int64 if counts else torch.float32)
        for dtype in () if counts else (*casts, torch.float32):
            value = value.to(dtype)
        value = _trim(value)
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def has_eight_bits(part: PixelPart) -> bool:
    """Whether the pixels of a part are floats of eight bits, or were such before they were cast back."""
    pixels = [value for name, value in part.items() if anatomy.is_pixels(name, value) and value.is_floating_point()]
    return any(value.dtype in EIGHT_BITS or any(_fits(value, dtype) for dtype in EIGHT_BITS) for value in pixels)


def _fits(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether a dtype of eight bits holds all values of a picture that is no plain drawing."""
    return torch.equal(value.to(dtype).to(value.dtype), value) and len(value.unique()) > PLAIN


def _trim(value: Tensor) -> Tensor:
    """Leave out empty tiles at the end of a picture `[1, tiles, channels, height, width]`."""
    if value.ndim < TILED:
        return value
    filled = value[0].flatten(1).any(1).nonzero()
    return value[:, : int(filled[-1]) + 1] if len(filled) else value[:, :0]
