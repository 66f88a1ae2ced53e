"""Caches that grow in place: a new token is written behind the others, where transformers copies all of them to make room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from lvlm_guard.forward.installations import StandIn, leave, stand_in
from lvlm_guard.protocols import Cache, CacheLayer

ROOM = 64
"""Positions that are made room for at once: so many tokens share the cost of one copy."""
BUFFERS = "_lvlm_guard_buffers"


class Buffer(NamedTuple):
    """One tensor of a layer, keys or values.

    Args:
        view: What the layer received last.
        storage: The larger tensor that `view` is the front of, or None before the first copy.
        spare: Another one, which rows are reordered into.
    """

    view: Tensor
    storage: Tensor | None = None
    spare: Tensor | None = None


def grow_in_place(cache: Cache | None) -> Callable[[], None]:
    """Let the plain growing layers of a cache grow in place; layers of other kinds stay as they are. Returns the undo.

    Only positions that nobody has received are ever written, so a tensor taken from the cache does not change as it grows. Rows
    that are reordered, as beams are at every step, are copied back and forth between two storages, so such a tensor lasts until
    rows are reordered for the second time after it was taken. What the layer held before it grew in place is never written.
    Where it holds another tensor than it received last (cropped, replaced), it grows by a copy, as always.
    """
    if cache is None or type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return lambda: None
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer and "update" not in vars(layer)]
    for layer in layers:
        stand_in(layer, "update", _update, layer)
        stand_in(layer, "reorder_cache", _reorder, layer)
        if layer.is_initialized:
            _set_buffers(layer, Buffer(layer.keys), Buffer(layer.values))
    return lambda: _undo(layers)


def _undo(layers: Sequence[CacheLayer]) -> None:
    for layer in layers:
        vars(layer).pop(BUFFERS, None)
        leave(layer, "update", layer)
        leave(layer, "reorder_cache", layer)


def _update(wrapper: StandIn, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Append keys and values, as the layer's own `update` does."""
    layer = wrapper.owner
    buffers: tuple[Buffer, Buffer] | None = vars(layer).get(BUFFERS)
    if buffers is not None and _fits(buffers[0], layer.keys, keys) and _fits(buffers[1], layer.values, values):
        _set_buffers(layer, _append(buffers[0], keys), _append(buffers[1], values))
    else:
        copied = wrapper.original(keys, values, *args, **kwargs)
        _set_buffers(layer, Buffer(copied[0]), Buffer(copied[1]))
    return layer.keys, layer.values


def _reorder(wrapper: StandIn, index: Tensor) -> None:
    """Continue row `index[i]` in row i, as the layer's own `reorder_cache` does, with room for what follows."""
    layer = wrapper.owner
    if not layer.get_seq_length():
        return
    buffers: tuple[Buffer, Buffer] | None = vars(layer).get(BUFFERS)
    keys, values = buffers or (Buffer(layer.keys), Buffer(layer.values))
    _set_buffers(layer, _select(keys, layer.keys, index), _select(values, layer.values, index))


def _select(buffer: Buffer, tensor: Tensor, index: Tensor) -> Buffer:
    """Copy rows of a tensor `[rows, ..., length, size]` into the spare storage of its buffer, or a new one."""
    length, size = tensor.shape[-2:]
    shape, is_own = (len(index), *tensor.shape[1:-2]), tensor is buffer.view
    spare = buffer.spare if is_own else None  # what somebody put there may lie in it
    if spare is None or spare.shape[:-2] != shape or spare.shape[-2] <= length or not _is_alike(spare, tensor):
        spare = tensor.new_empty((*shape, length + ROOM, size))
    view = spare.narrow(-2, 0, length)
    torch.index_select(tensor, 0, index.to(tensor.device), out=view)
    return Buffer(view, spare, buffer.storage if is_own else None)


def _is_alike(tensor: Tensor, second: Tensor) -> bool:
    return (tensor.dtype, tensor.device, tensor.shape[-1]) == (second.dtype, second.device, second.shape[-1])


def _set_buffers(layer: CacheLayer, keys: Buffer, values: Buffer) -> None:
    layer.keys, layer.values = keys.view, values.view
    setattr(layer, BUFFERS, (keys, values))


def _fits(buffer: Buffer, current: Tensor | None, new: Tensor) -> bool:
    """Whether the layer still holds what it received last, and the new positions are of its kind."""
    view = buffer.view
    same_kind = new.shape[:-2] == view.shape[:-2] and new.shape[-1] == view.shape[-1] and new.dtype == view.dtype
    return current is view and same_kind


def _append(buffer: Buffer, new: Tensor) -> Buffer:
    """Write the new positions `[..., new, size]` behind those of the buffer."""
    length = buffer.view.shape[-2]
    total = length + new.shape[-2]
    storage = buffer.storage
    if storage is None or storage.shape[-2] < total:
        storage = buffer.view.new_empty((*buffer.view.shape[:-2], total + ROOM, buffer.view.shape[-1]))
        storage.narrow(-2, 0, length).copy_(buffer.view)
    storage.narrow(-2, length, total - length).copy_(new)
    return Buffer(storage.narrow(-2, 0, total), storage, buffer.spare)
