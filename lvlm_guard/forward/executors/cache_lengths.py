"""Layers that count positions by the length of their cache: rows of one batch share that length, whatever their own is."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from lvlm_guard import anatomy
from lvlm_guard.forward.installations import hooked, register
from lvlm_guard.protocols import Model

FARTHEST, UNKNOWN = 2**17, 2**15
"""How many positions layers are told of at most, and where the config does not say how many there may be."""


class LongCache:
    """An empty cache that layers are told is long.

    Masks and positions are made outside the layers, from what the cache really holds, so that a layer which returns something
    else counts positions by itself.

    Args:
        module: The module that decodes.
        room: How many positions will be fed.
    """

    def __init__(self, module: Model, room: int) -> None:
        self.cache = DynamicCache()
        self._layers = anatomy.decoder_layers(module)
        limit = anatomy.maximum_length(module.config)
        self._distance = max(min(UNKNOWN if limit is None else limit, FARTHEST) - room, 0)
        self._alias = copy.copy(self.cache)  # with the same layers
        self._alias.get_seq_length = functools.partial(_tell_length, self.cache, self._distance)

    @contextmanager
    def in_layers(self) -> Iterator[None]:
        """Hand layers the longer one, in forwards of this block that get this cache."""
        with hooked(self._layers, self):
            for layer in self._layers:
                register(layer, self, self._replace, before=True, with_kwargs=True)
            yield

    def _replace(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not any(value is self.cache for value in (*args, *kwargs.values())):
            return None
        inputs = {name: self._exchange(value) for name, value in kwargs.items()}
        if isinstance(places := kwargs.get("cache_position"), Tensor):  # older versions hand it to every layer
            inputs["cache_position"] = places + self._distance
        return tuple(map(self._exchange, args)), inputs

    def _exchange(self, value: Any) -> Any:
        return self._alias if value is self.cache else value


def _tell_length(cache: DynamicCache, distance: int, *args: Any, **kwargs: Any) -> int:
    return distance + int(cache.get_seq_length(*args, **kwargs))
