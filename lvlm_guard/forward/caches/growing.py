"""Caches that grow in place: a new token is written behind the others, where transformers copies all of them to make room."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64
"""Positions that are made room for at once: so many tokens share the cost of one copy."""
HELD = "_lvlm_guard_held"


class Held(NamedTuple):
    """One tensor of a layer, keys or values: what the layer was given last, and the storage behind it."""

    given: Tensor
    store: Tensor | None = None


def grow_in_place(cache: Any) -> Callable[[], None]:
    """Let the plain growing layers of a cache grow in place; layers of other kinds stay as they are. Returns the undo.

    Only positions that nobody has been handed are written: a tensor that was taken from the cache never changes. Where the
    layer holds another tensor than it was given last (cropped, reordered, put in by somebody), it grows by a copy, as ever.
    """
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return lambda: None
    changed = [layer for layer in cache.layers if type(layer) is DynamicLayer and "update" not in vars(layer)]
    for layer in changed:
        layer.update = types.MethodType(_update, layer)
        if layer.is_initialized:
            _hold(layer, Held(layer.keys), Held(layer.values))
    return lambda: _undo(changed)


def _undo(layers: list[Any]) -> None:
    for layer in layers:
        for name in ("update", HELD):
            vars(layer).pop(name, None)


def _update(layer: Any, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    held: tuple[Held, Held] | None = vars(layer).get(HELD)
    if held is not None and _fits(held[0], layer.keys, keys) and _fits(held[1], layer.values, values):
        _hold(layer, _grown(held[0], keys), _grown(held[1], values))
    else:
        given = type(layer).update(layer, keys, values, *args, **kwargs)
        _hold(layer, Held(given[0]), Held(given[1]))
    return layer.keys, layer.values


def _hold(layer: Any, keys: Held, values: Held) -> None:
    layer.keys, layer.values = keys.given, values.given
    setattr(layer, HELD, (keys, values))


def _fits(held: Held, stored: Tensor | None, new: Tensor) -> bool:
    """Whether the layer still holds what it was given, and the new positions are of its kind."""
    given = held.given
    alike = new.shape[:-2] == given.shape[:-2] and new.shape[-1] == given.shape[-1] and new.dtype == given.dtype
    return stored is given and alike


def _grown(held: Held, new: Tensor) -> Held:
    """The new positions `[..., new, size]` behind those held."""
    length = held.given.shape[-2]
    total = length + new.shape[-2]
    store = held.store
    if store is None or store.shape[-2] < total:
        store = held.given.new_empty((*held.given.shape[:-2], total + ROOM, held.given.shape[-1]))
        store.narrow(-2, 0, length).copy_(held.given)
    store.narrow(-2, length, total - length).copy_(new)
    return Held(store.narrow(-2, 0, total), store)
