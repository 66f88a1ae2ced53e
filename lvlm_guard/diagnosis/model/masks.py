"""What the masks that attention is given do to scores beside hiding keys: nothing, in a sound model."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.forward.installations import hook_with_kwargs

HIDDEN = -100.0
"""Nats from which on a key is hidden: nothing is left of its attention in any dtype."""
DIMENSIONS = 4
"""Of a mask of numbers: rows, heads, queries, keys."""


@contextmanager
def noted_biases(
    attentions: Mapping[int, nn.Module], window: int, biases: MutableMapping[int, Tensor]
) -> Iterator[None]:
    """Keep what masks add to the scores of each key, whenever attention runs in this thread.

    Args:
        attentions: Modules by layer.
        window: Last queries that are looked at.
        biases: Receives by layer the greatest size of what is added, over heads and queries `[rows, keys]`, in nats.
    """
    thread = threading.get_ident()

    def note(layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        mask = find_mask(args, kwargs) if threading.get_ident() == thread else None
        if mask is not None:
            biases[layer] = measure_bias(mask, window)

    with ExitStack() as stack:
        for layer, module in attentions.items():
            see = functools.partial(note, layer)
            stack.callback(hook_with_kwargs(module, see, before=True).remove)
        yield


def find_mask(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the numbers that an attention is to add to its scores; None where its mask holds none."""
    values = [kwargs.get("attention_mask"), *args[1:]]
    masks = (value for value in values if isinstance(value, Tensor) and value.is_floating_point())
    return next((mask for mask in masks if mask.ndim == DIMENSIONS), None)


def measure_bias(mask: Tensor, window: int) -> Tensor:
    """Return the greatest size of what a mask `[rows, heads, queries, keys]` adds to keys that it does not hide `[rows, keys]`."""
    last = mask[:, :, -window:].detach().float()
    return torch.where(last > HIDDEN, last.abs(), 0.0).amax((1, 2))
