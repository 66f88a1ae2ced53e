"""Static caches of main and its branches as the rows of one: the shape never changes, so a compiled forward keeps its graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer

from lvlm_guard.forward.caches.joining import JoinedRows, layers_of
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


class StaticJoinedCache(JoinedRows):
    """Static caches joined in one of their own; main's rests until `release`."""

    def _join_layers(self, layers: Sequence[Sequence[Any]], lengths: Sequence[int]) -> None:
        self._length = max(lengths)
        self.joined.layers = [_join(layers_of_index, lengths) for layers_of_index in layers]

    @property
    def length(self) -> int:
        """Positions of the longest row, counted here: reading a static cache's own count waits for the device."""
        return self._length

    def advance(self, positions: int) -> None:
        """Count the positions of a forward that ran."""
        self._length += positions

    def cut_keys(self, weights: Tensor, _new: int) -> Tensor:
        """Main's attention `[rows, heads, new, keys]` without the padding in front of its prompt, the free room behind it kept."""
        return weights[..., self._shift :]

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
