"""Static caches of main and its branches as the rows of one: the shape never changes, so a compiled forward keeps its graph."""

from __future__ import annotations

import copy
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer

from lvlm_guard.forward.caches.joining import layers_of, length_of
from lvlm_guard.protocols import Cache


def static_obstacle(caches: Sequence[Cache | None]) -> str | None:
    """Why these static caches cannot become one, or None when they can."""
    for cache in caches:
        if type(cache) is not StaticCache or getattr(cache, "offloading", False):
            return f"the cache is a {type(cache).__name__}"
        for layer in layers_of(cache):
            if type(layer) is not StaticLayer:
                return f"a cache layer is a {type(layer).__name__}"
            if not layer.is_initialized:
                return "a cache layer holds nothing"
    return None if len({len(layers_of(cache)) for cache in caches}) == 1 else "the caches differ in depth"


class StaticJoinedCache:
    """One static cache with the rows of main and its branches, right-aligned; main's own rests until `release`.

    Args:
        main: Main's cache, which generate holds: it shows main's length while the joined one is decoded with.
        branches: A cache per branch, all synchronised to the same generated tokens.
        rows: Rows of generate in each.
    """

    def __init__(self, main: Cache, branches: Sequence[Cache | None], rows: int) -> None:
        self._main = main
        self._rows = rows
        self._copies = len(branches) + 1
        caches = (main, *branches)
        lengths = [length_of(cache) for cache in caches]
        self._length, self._shift = max(lengths), max(lengths) - lengths[0]
        self.joined: Any = copy.copy(main)
        vars(self.joined).pop("reorder_cache", None)
        self.joined.layers = [
            _join([layers_of(cache)[index] for cache in caches], lengths) for index in range(len(layers_of(main)))
        ]
        self._main.get_seq_length = types.MethodType(lambda *_args, **_named: self.main_length(), main)

    @property
    def length(self) -> int:
        """Positions of the longest row, counted here: reading a static cache's own count waits for the device."""
        return self._length

    def advance(self, positions: int) -> None:
        """Count the positions of a forward that ran."""
        self._length += positions

    def reorder(self, index: Tensor) -> None:
        """Follow a reordering of generate's rows in every copy."""
        self.joined.reorder_cache(torch.cat([index + copy_ * self._rows for copy_ in range(self._copies)]))

    def main_length(self) -> int:
        """Positions that main's rows have seen."""
        return self._length - self._shift

    def release(self) -> None:
        """Write main's rows into main's own cache, as plain generate would have."""
        vars(self._main).pop("get_seq_length", None)
        for layer, joined in zip(layers_of(self._main), self.joined.layers, strict=True):
            for name in ("keys", "values"):
                content = getattr(joined, name)[: self._rows, :, self._shift : self._length]
                getattr(layer, name)[:, :, : self.main_length()] = content
            if isinstance(getattr(layer, "cumulative_length", None), Tensor):
                layer.cumulative_length.fill_(self.main_length())


def _join(layers: Sequence[Any], lengths: Sequence[int]) -> Any:
    """One layer of every cache as rows of a new one, with as much room behind the prompts as main's has.

    What stands before a shorter prompt is masked; it is 1, because some versions take positions that are 0 for empty ones.
    """
    main, longest = layers[0], max(lengths)
    joined = StaticLayer(max_cache_len=main.max_cache_len + longest - lengths[0])
    aligned = {name: [_align(getattr(layer, name), length, longest) for layer, length in zip(layers, lengths, strict=True)] for name in ("keys", "values")}  # fmt: skip
    positions = torch.arange(longest, device=main.keys.device)
    joined.update(torch.cat(aligned["keys"]), torch.cat(aligned["values"]), {"cache_position": positions})
    return joined


def _align(content: Tensor, length: int, longest: int) -> Tensor:
    """The first `length` positions, moved to the right end of `longest`."""
    return torch.nn.functional.pad(content[:, :, :length], (0, 0, longest - length, 0), value=1.0)
