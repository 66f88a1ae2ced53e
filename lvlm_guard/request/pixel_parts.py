"""The pixels of each picture in a batch, and digests of them that survive other devices, dtypes, rows and padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.request.pixel_layouts import read_grid

PixelPart = dict[str, Tensor]
"""Pixel inputs of one picture, and what places them, on the CPU: `[1, ...]`, or the patches of one picture."""
CASTS = (torch.bfloat16, torch.float16)
"""Dtypes that a batch may be cast to after it was made."""
NARROWING = (torch.float32, *CASTS)
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
    """Return the inputs that consist of some parts; those of `split_pixels` give the batch back."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def is_blank(part: PixelPart) -> bool:
    """Whether a part only fills up a batch."""
    return not any(bool(value.any()) for name, value in part.items() if anatomy.is_pixels(name, value))


def digest_part(part: PixelPart, dtype: torch.dtype) -> bytes:
    """Return a digest of every byte of a part whose floats are cast to `dtype`; empty tiles at its end do not count."""
    digest = hashlib.sha256(str(dtype).encode())
    for name in sorted(part):
        value = _trim(part[name]).to(dtype) if part[name].is_floating_point() else part[name]
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def digests(parts: list[PixelPart]) -> Iterator[tuple[bytes, ...]]:
    """Yield the digests by which a batch can be known: as it is, and as it was before it was cast to a wider dtype."""
    values = [value for part in parts for name, value in part.items() if anatomy.is_pixels(name, value)]
    dtype = values[0].dtype
    yield tuple(digest_part(part, dtype) for part in parts)
    for narrow in NARROWING:
        if narrow.itemsize < dtype.itemsize and all(
            torch.equal(value.to(narrow).to(value.dtype), value) for value in values
        ):
            yield tuple(digest_part(part, narrow) for part in parts)


def _trim(value: Tensor) -> Tensor:
    """Leave out empty tiles at the end of a picture `[1, tiles, channels, height, width]`."""
    if value.ndim < TILED:
        return value
    filled = value[0].flatten(1).any(1).nonzero()
    return value[:, : int(filled[-1]) + 1] if len(filled) else value[:, :0]
