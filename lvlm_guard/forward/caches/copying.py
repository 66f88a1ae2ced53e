"""Copies of a cache that was filled once: further rows continue from them, and what they append stays their own."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lvlm_guard.forward.caches.joining import layers_of
from lvlm_guard.protocols import Cache

GROWING = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers that append by making new tensors, so copies may share the old ones."""


def find_copying_obstacle(cache: Cache | None) -> str | None:
    """Return why a cache cannot be continued by several calls, or None when it can."""
    if cache is None:
        return "there is no cache"
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return f"its cache is a {type(cache).__name__}"
    strange = next((layer for layer in layers_of(cache) if not _is_growing(layer) and not _is_recurrent(layer)), None)
    return None if strange is None else f"a cache layer is a {type(strange).__name__}"


def find_cutting_obstacle(cache: Cache | None, across: Collection[int] = ()) -> str | None:
    """Return why no beginning can be cut out of a cache, or None when one can; layers `across` hold pictures, which stay whole."""
    obstacle = find_copying_obstacle(cache)
    if obstacle is not None:
        return obstacle
    for layer in _list_cut(cache, across):
        if not _is_growing(layer):
            return f"a cache layer is a {type(layer).__name__}"
        if not layer.is_initialized:
            return "a cache layer holds nothing"
        if layer.keys.shape[-2] != layer.get_seq_length():
            return "a sliding window has dropped positions"
    return None


def copy_layers(cache: Cache) -> Cache:
    """Return a cache that shares the tensors of another, for as long as nothing is appended to either."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in layers_of(cache)]
    return copied


def cut_row(cache: Cache, row: int, start: int, length: int, across: Collection[int] = ()) -> Cache:
    """Return `length` positions of one row of a cache without cutting obstacle, from `start` on; the tensors are shared."""
    cut = copy_layers(cache)
    for layer in layers_of(cut):
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[row : row + 1], layer.values[row : row + 1]
    for layer in _list_cut(cut, across):
        layer.keys = layer.keys[:, :, start : start + length]
        layer.values = layer.values[:, :, start : start + length]
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = length
    return cut


def _list_cut(cache: Cache | None, across: Collection[int]) -> list[Any]:
    return [layer for index, layer in enumerate(layers_of(cache)) if index not in across]


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
