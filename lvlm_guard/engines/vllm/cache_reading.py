"""Keys and values of one request out of an engine's paged cache, whose layout is found by trying."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

Pages = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Returns keys and values `[positions, key heads, size]` out of a cache, the ids of a request's blocks, and positions of a block."""


def read_halves_transposed(cache: Tensor, blocks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Read blocks `[blocks, key heads, positions, 2 x size]` whose first half holds keys, a row for each number of a key."""
    pages = cache[blocks].flatten(2)
    keys, values = pages.chunk(2, dim=2)
    return _join(keys.unflatten(2, (-1, size)).transpose(2, 3)), _join(values.unflatten(2, (size, -1)))


def read_halves(cache: Tensor, blocks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Read blocks `[blocks, key heads, positions, 2 x size]` whose first half holds keys, a row for each position."""
    keys, values = cache[blocks].flatten(2).chunk(2, dim=2)
    return _join(keys.unflatten(2, (size, -1))), _join(values.unflatten(2, (size, -1)))


def read_pairs(cache: Tensor, blocks: Tensor, _size: int) -> tuple[Tensor, Tensor]:
    """Read a cache `[2, blocks, positions, key heads, size]`: keys, then values."""
    keys, values = cache[:, blocks].flatten(1, 2)
    return keys, values


LAYOUTS: Mapping[str, Pages] = {
    "transposed keys in one half": read_halves_transposed,
    "keys in one half": read_halves,
    "keys and values apart": read_pairs,
}
"""What is known, by name; which of them a cache has is proved by attention that comes out as the engine's own."""


def _join(pages: Tensor) -> Tensor:
    """Return `[blocks, key heads, positions, size]` as `[positions, key heads, size]`."""
    return pages.transpose(1, 2).flatten(0, 1)
