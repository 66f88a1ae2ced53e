"""Copies of a cache that was filled once: further rows continue from them, and what they append stays their own."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lvlm_guard.forward.caches.joining import layers_of
from lvlm_guard.protocols import Cache

GROWING = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers that append by making new tensors, so copies may share the old ones."""


def find_copying_obstacle(cache: Cache | None) -> str | None:
    """Return why a cache cannot be continued by several calls, or None when it can."""
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return f"its cache is a {type(cache).__name__}"
    strange = next((layer for layer in layers_of(cache) if not _is_growing(layer) and not _is_recurrent(layer)), None)
    return None if strange is None else f"a cache layer is a {type(strange).__name__}"


def is_plain(cache: Cache | None) -> bool:
    """Whether every layer keeps every position, so that masked positions may stand between a prefix and what follows."""
    return all(type(layer) is DynamicLayer for layer in layers_of(cache))


def copy_rows(cache: Cache, rows: int) -> Cache:
    """Return a cache of one row as one of `rows` equal rows; the tensors are shared until something is appended."""
    copied = copy.copy(cache)
    copied.layers = [_copy_layer(layer, rows) for layer in layers_of(cache)]
    return copied


def _copy_layer(layer: Any, rows: int) -> Any:
    copied = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, Tensor) and value.ndim:
            setattr(copied, name, _repeat(value, rows, shares=_is_growing(layer)))
        elif isinstance(value, (list, dict)):
            setattr(copied, name, _copy_states(value, rows))
    return copied


def _copy_states(values: Any, rows: int) -> Any:
    """Copy lists and dicts, as recurrent layers hold their states in."""
    if isinstance(values, Tensor):
        return _repeat(values, rows, shares=False)
    if isinstance(values, dict):
        return {name: _copy_states(value, rows) for name, value in values.items()}
    return [_copy_states(value, rows) for value in values] if isinstance(values, list) else values


def _repeat(value: Tensor, rows: int, *, shares: bool) -> Tensor:
    """Rows of a tensor `[1, ...]`; layers that write into their tensors get tensors of their own."""
    if not value.numel():
        return value
    repeated = value.expand(rows, *value.shape[1:])
    return repeated if shares else repeated.clone()


def _is_growing(layer: Any) -> bool:
    return type(layer) in GROWING and not {"update", "crop"} & set(vars(layer))


def _is_recurrent(layer: Any) -> bool:
    return hasattr(layer, "recurrent_states") or hasattr(layer, "conv_states")
