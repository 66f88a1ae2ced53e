"""Caches of main and its branches: cropping, reordering, and joining them into the rows of one batch."""

from __future__ import annotations

import copy
import types
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from lvlm_guard.protocols import Cache, CacheLayer, Config

JOINABLE = (DynamicLayer, DynamicSlidingWindowLayer)


def length_of(cache: Cache | None) -> int:
    """Positions the cache has seen; 0 without a cache, and of an object that does not tell."""
    if cache is None or not hasattr(cache, "get_seq_length"):
        return 0
    first = next(iter(layers_of(cache)), None)
    if type(first) is StaticLayer and not hasattr(first, "cumulative_length") and "get_seq_length" not in vars(cache):
        return _count_written(first)
    return int(cache.get_seq_length())


def _count_written(layer: Any) -> int:
    """Positions up to the last one that any row has written: older static layers skip those whose keys are 0, as padding's may be."""
    if not layer.is_initialized:
        return 0
    written = layer.keys.ne(0).flatten(0, 1).any(-1).any(0).nonzero()
    return int(written.max()) + 1 if written.numel() else 0


def positions_beside(cache: Cache | None, length: int) -> int:
    """Positions in a cache beyond the `length` that were fed as ids: an image that has none. Less than 0 where some are dropped."""
    return length_of(cache) - length if length_of(cache) else 0


def crop(cache: Cache, length: int) -> None:
    """Forget positions from `length` on; layers that record their past are put back to their window even at 0."""
    surplus = length_of(cache) - length
    recording = any(getattr(layer, "record_past", False) and not _is_whole(layer) for layer in layers_of(cache))
    if surplus > 0 or recording:
        cache.crop(-surplus)


def layers_of(cache: Cache | None) -> Sequence[Any]:
    """Layers of a cache; empty for kinds that keep none."""
    return getattr(cache, "layers", None) or ()


def can_roll_back(cache: Cache | None, config: Config) -> bool:
    """Whether rejected candidates can be taken back out of every layer of a cache, or of the one that a model of this config makes."""
    cache = DynamicCache(config=config.get_text_config(decoder=True)) if cache is None else cache
    windows = [layer for layer in layers_of(cache) if isinstance(layer, DynamicSlidingWindowLayer)]
    return all(hasattr(layer, "activate_past_recording") for layer in windows)


def keep_whole(cache: Cache | None) -> None:
    """Let sliding layers keep every position, so that tokens can be taken out again however many they are."""
    for layer in layers_of(cache):
        if hasattr(layer, "sliding_window") and hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
            layer.crop = types.MethodType(_cut, layer)
            layer.update = types.MethodType(_update, layer)


def _update(layer: Any, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Store everything, hand out the window: some versions hand out all that is stored, which their masks do not fit."""
    stored = type(layer).update(layer, keys, values, *args, **kwargs)
    visible = layer.sliding_window - 1 + keys.shape[-2]
    return stored[0][..., -visible:, :], stored[1][..., -visible:, :]


def _cut(layer: Any, amount: int) -> None:
    """Take `-amount` positions out; the layer's own crop would forget those outside the window, too."""
    if amount < 0:
        layer.keys, layer.values = layer.keys[..., :amount, :], layer.values[..., :amount, :]
        layer.cumulative_length += amount


def _is_whole(layer: Any) -> bool:
    return "crop" in vars(layer)


def irreversible(cache: Cache | None) -> str | None:
    """Name of a kind of layer that tokens cannot be taken out of again, or None where there is none."""
    for layer in layers_of(cache):
        if type(layer) not in JOINABLE or (hasattr(layer, "sliding_window") and not _is_whole(layer)):
            return type(layer).__name__
    return None


def record_past_like(cache: Cache | None, main: Cache | None) -> None:
    """Let sliding layers keep what main's keep: rejected candidates, or every position."""
    if any(_is_whole(layer) for layer in layers_of(main)):
        keep_whole(cache)
    elif cache is not None and any(getattr(layer, "record_past", False) for layer in layers_of(main)):
        cache.activate_past_recording()


def obstacle(caches: Sequence[Cache | None]) -> str | None:
    """Why these caches cannot become one batch, or None when they can."""
    for cache in caches:
        if cache is None or type(cache) is not DynamicCache or getattr(cache, "offloading", False):
            return f"the cache is a {type(cache).__name__}"
        for layer in cache.layers:
            if type(layer) not in JOINABLE:
                return f"a cache layer is a {type(layer).__name__}"
            if not layer.is_initialized or layer.keys.shape[-2] != _stored(layer, length_of(cache)):
                return "a cache layer holds something other than the tokens (cross-attention)"
    return None if len({len(layers_of(cache)) for cache in caches}) == 1 else "the caches differ in depth"


def _stored(layer: Any, length: int) -> int:
    windowed = isinstance(layer, DynamicSlidingWindowLayer) and not _is_whole(layer)
    return min(length, layer.sliding_window - 1) if windowed else length


class JoinedRows(ABC):
    """Caches of main and its branches as rows of one batch, right-aligned.

    Args:
        main: Main's cache, which generate holds: on it, the length keeps meaning main's.
        branches: A cache per branch, all synchronised to the same generated tokens.
        rows: Rows of generate in each.

    Attributes:
        joined: The cache that the forward gets, with the true length.
    """

    def __init__(self, main: Cache, branches: Sequence[Cache | None], rows: int) -> None:
        caches = (main, *branches)
        lengths = [length_of(cache) for cache in caches]
        self._main = main
        self._rows = rows
        self._copies = len(caches)
        self._shift = max(lengths) - lengths[0]
        self.joined: Any = copy.copy(main)
        vars(self.joined).pop("reorder_cache", None)
        self._join_layers(
            [[layers_of(cache)[index] for cache in caches] for index in range(len(layers_of(main)))], lengths
        )
        main.get_seq_length = types.MethodType(lambda *_args, **_named: self.main_length(), main)

    @abstractmethod
    def _join_layers(self, layers: Sequence[Sequence[Any]], lengths: Sequence[int]) -> None:
        """Join the layers of all caches, main's first in each; `lengths` are those of the caches."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Positions of the longest row."""

    def main_length(self) -> int:
        """Positions that main's rows have seen."""
        return self.length - self._shift

    def reorder(self, index: Tensor) -> None:
        """Follow a reordering of generate's rows in every copy."""
        self.joined.reorder_cache(torch.cat([index + copy_ * self._rows for copy_ in range(self._copies)]))


class JoinedCache(JoinedRows):
    """Growing caches joined. The layers live in main's cache object, on which crop and beam order keep meaning main's, too."""

    def _join_layers(self, layers: Sequence[Sequence[Any]], _lengths: Sequence[int]) -> None:
        for layers_of_index in layers:
            _join(layers_of_index[0], layers_of_index)
        self._override()

    def _override(self) -> None:
        def crop_main(_: Any, amount: int) -> None:
            self.joined.crop(amount if amount <= 0 else amount + self._shift)

        self._main.crop = types.MethodType(crop_main, self._main)

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return length_of(self.joined)

    def advance(self, positions: int) -> None:
        """Nothing to do: the layers count what they hold."""

    def cut_keys(self, weights: Tensor, new: int) -> Tensor:
        """Main's attention `[rows, heads, new, keys]` without the padding in front of its prompt; windows keep fewer keys."""
        past = self.main_length() - new
        return weights[..., -(new + min(weights.shape[-1] - new, past)) :]

    def release(self) -> None:
        """Leave main's rows and main's length in main's cache, as plain generate would."""
        for name in ("get_seq_length", "crop"):
            vars(self._main).pop(name, None)
        for layer in self._main.layers:
            _keep_main(layer, self._rows, self._shift)


def _join(target: CacheLayer, layers: Sequence[Any]) -> None:
    """Put one layer of every cache into `target` as rows.

    Heads are joined at their right ends, padded on the left to the longest prompt: new tokens then land at the same
    index in every row, and each row's mask hides its own padding.
    """
    stored = max(layer.keys.shape[-2] for layer in layers)
    for name in ("keys", "values"):
        parts = [getattr(layer, name) for layer in layers]
        aligned = [pad(part, (0, 0, stored - part.shape[-2], 0)) for part in parts]
        setattr(target, name, torch.cat(aligned, dim=0))
    if hasattr(target, "cumulative_length"):
        target.cumulative_length = max(
            layer.cumulative_length for layer in layers
        )  # sliding windows count what they drop


def _keep_main(layer: Any, rows: int, shift: int) -> None:
    length = layer.get_seq_length() - shift
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = length
    stored = min(layer.keys.shape[-2], _stored(layer, length))
    for name in ("keys", "values"):
        joined = getattr(layer, name)
        setattr(layer, name, joined[:rows, :, joined.shape[-2] - stored :].clone())
