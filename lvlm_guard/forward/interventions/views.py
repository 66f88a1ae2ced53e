"""What an edit inside a layer may look at; everything lies on that layer's device."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_guard.errors import InputError
from lvlm_guard.forward.interventions.running import RunningForward
from lvlm_guard.strategy.edits import HiddenEdit
from lvlm_guard.strategy.generation import Generation


@dataclass(slots=True, eq=False)
class LayerView:
    """What a forward lets an edit in one of its layers look at.

    Args:
        running: The forward.
        branch: Whose rows are handed over.
        layer: Index of the layer.
        device: Where the layer lies.
        count: Positions that run in this layer: those of the forward, or just the last of them.
    """

    running: RunningForward
    branch: Hashable
    layer: int
    device: torch.device
    count: int

    @property
    def gen(self) -> Generation:
        """The generation of this call."""
        return self.running.gen

    @property
    def predicting(self) -> int:
        """How many of the last positions predict generated tokens."""
        return min(self.running.layout.predicting, self.count)

    @property
    def image(self) -> Tensor:
        """Which positions of this forward are image tokens, bool `[rows, positions]`."""
        return self._newest("image")

    @property
    def valid(self) -> Tensor:
        """Which positions of this forward are not padding, bool `[rows, positions]`."""
        return self._newest("valid")

    def _newest(self, name: str) -> Tensor:
        return self.running.layout.positions(self.branch, name)[:, -self.count :].to(self.device)

    def spread(self, values: Tensor) -> Tensor:
        """Values `[rows, predicting, ...]` for all positions; earlier ones get what the first predicting one has."""
        values = values[:, -self.count :]
        before = self.count - values.shape[1]
        first = values[:, :1].expand(-1, before, *values.shape[2:])
        return torch.cat([first, values], dim=1)

    def observed(self, key: Hashable, layer: int) -> Tensor:
        """What an attention capture kept."""
        if (key, layer) not in self.gen.observations:
            raise InputError(f"Nothing was observed under {key!r} in layer {layer} before this point.")
        return self.gen.observations[key, layer].to(self.device)

    def readout(self, layer: int) -> Tensor:
        """Next-token logits of an online readout of an earlier layer."""
        online = self.running.captures.online
        if layer not in online:
            raise InputError(f"Layer {layer} was not read out online before this point.")
        return online[layer].to(self.device)


@dataclass(slots=True, eq=False)
class AttentionView(LayerView):
    """The `View` of an attention edit or capture."""

    positions: Tensor
    keys: Tensor
    input: Tensor | None = None

    def fit(self, values: Tensor) -> Tensor:
        """Values over every position so far `[..., positions]`, cut to the keys that this layer holds."""
        return values[..., -self.keys.shape[-1] :]


@dataclass(slots=True, eq=False)
class HiddenView(LayerView):
    """The `View` of a hidden edit; masks are computed when they are looked at."""

    edit: HiddenEdit
    input: Tensor | None

    @property
    def positions(self) -> Tensor:
        """Where the edit applies among the positions handed over, bool `[rows, positions]`."""
        applies = self.running.layout.edited(self.branch, self.edit.positions, self.edit.when)
        return applies[:, -self.count :].to(self.device)

    @property
    def keys(self) -> Tensor:
        """The same: hidden states have no keys of their own."""
        return self.positions

    def fit(self, values: Tensor) -> Tensor:
        """Values over every position so far `[..., positions]`, cut to the positions handed over."""
        return values[..., -self.count :]
