"""Which layers run attention that can be edited, found by running the decoder once with and once without the switch."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.interventions import attention
from lvlm_guard.forward.interventions.probing import IMAGE_STATES, POSITIONS, run_decoder, valid_positions
from lvlm_guard.forward.interventions.running import Attending, Reach
from lvlm_guard.protocols import Model

TOLERANCE = 1e-3
HALF_TOLERANCE = 5e-2
"""How far, as a share of its size, a state may be off in half precision."""
REACHES: dict[int, Reach] = {IMAGE_STATES: "across", POSITIONS + IMAGE_STATES: "both"}
"""Whose keys an attention module has, by how many they are in a run for the purpose."""


@dataclass
class _Observation:
    """What was found in a decoder as it was then."""

    state: Hashable
    modules: weakref.WeakKeyDictionary[nn.Module, Attending] = field(default_factory=weakref.WeakKeyDictionary)


_observations: weakref.WeakKeyDictionary[Any, _Observation] = weakref.WeakKeyDictionary()


def find_attention(module: Model) -> Mapping[nn.Module, Attending]:
    """Return the attention modules of the decoder's layers that run through transformers' interface.

    There is one in each layer, or one for the decoder's own positions and one for what stands across. Layers that share one,
    or that have others, are left out. Looked for once for each model and implementation.

    Raises:
        ModelRefused: The decoder does not run on random embeddings, or its states change when its attention is switched.
    """
    layers, configs = anatomy.decoder_layers(module), anatomy.attention_configs(module)
    implementations = tuple(attention.name_of(config) for config in configs)
    state = implementations, tuple(id(layer) for layer in layers)
    observation = _observations.get(module)
    if observation is None or observation.state != state:
        observation = _observations[module] = _Observation(state, _look(module, layers))
    return observation.modules


def _look(module: Model, layers: nn.ModuleList) -> weakref.WeakKeyDictionary[nn.Module, Attending]:
    with attention.installed(module), attention.witnessed() as calls:
        switched = run_decoder(module, padded=True)
    _compare(module, run_decoder(module, padded=True), switched)
    holders: dict[nn.Module, list[int]] = {}
    for number, layer in enumerate(layers):
        for part in layer.modules():
            holders.setdefault(part, []).append(number)
    modules: weakref.WeakKeyDictionary[nn.Module, Attending] = weakref.WeakKeyDictionary()
    alone = {part: holders[part][0] for part in calls if len(holders.get(part, ())) == 1}
    for part, index in alone.items():
        heads, keys = calls[part]
        reaches = [REACHES.get(calls[neighbour][1], "own") for neighbour, layer in alone.items() if layer == index]
        if len(reaches) == 1 or sorted(reaches) == [
            "across",
            "own",
        ]:  # of others in a layer, it cannot be told which is meant
            modules[part] = Attending(index, heads, REACHES.get(keys, "own"))
    return modules


def _compare(module: Model, plain: Tensor, switched: Tensor) -> None:
    """Refuse a model that looks at its attention's name where it matters; rounding may send single tokens elsewhere.

    Raises:
        ModelRefused: Most states of a row differ.
    """
    if not bool(plain.isfinite().all()):
        return  # an error of its own once the prompt runs
    difference = (switched - plain).float().square().mean(-1).sqrt()
    error = difference / plain.float().square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    valid = valid_positions(plain)
    worst = max(float(row[of].median()) for row, of in zip(error, valid, strict=True))
    if not worst <= (TOLERANCE if plain.dtype in (torch.float32, torch.float64) else HALF_TOLERANCE):
        raise ModelRefused(
            f"The hidden states of {type(module).__name__} change by {worst:.2g} of their size when its attention runs "
            "through the guard unedited, so attention edits would not be exact. Choose a strategy that does not edit "
            "or observe attention."
        )
