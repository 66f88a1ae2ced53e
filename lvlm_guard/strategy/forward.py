"""The result of one guarded forward."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lvlm_guard.strategy.terms import Statistics


@dataclass
class Forward:
    """The result of one guarded forward, before and after the terms are added.

    Args:
        main: Raw logits of main `[rows, positions, vocab]`.
        branches: Raw logits of each branch by key, same shape.
        first_position: Index among the generated tokens that position 0 predicts; 0 in the prefill.
        combined: Logits that generate receives, once the terms are added.
        statistics: Row statistics, once a strategy has asked for them.
        readouts: Logits of inner layers of main by (layer, whether normed), same shape.
        tokens: Generated tokens fed so far `[rows, tokens]`, drafts that this forward tries included.
    """

    main: Tensor
    branches: Mapping[Hashable, Tensor]
    first_position: int
    combined: Tensor | None = None
    statistics: Statistics | None = None
    readouts: Mapping[tuple[int, bool], Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None

    def __post_init__(self) -> None:
        self._stacked: dict[tuple[tuple[int, ...], bool], Tensor] = {}

    def stacked(self, layers: tuple[int, ...], *, normed: bool) -> Tensor:
        """Return readouts of several layers `[layers, rows, positions, vocab]`, stacked once."""
        key = layers, normed
        if key not in self._stacked:
            self._stacked[key] = torch.stack([self.readouts[layer, normed] for layer in layers])
        return self._stacked[key]

    def select(self, index: Tensor) -> Forward:
        """Return the forward of other rows, without statistics, which are computed again on demand."""

        def rows(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, index.to(tensor.device))

        return Forward(
            rows(self.main),
            {key: rows(logits) for key, logits in self.branches.items()},
            self.first_position,
            None if self.combined is None else rows(self.combined),
            readouts={layer: rows(logits) for layer, logits in self.readouts.items()},
            tokens=None if self.tokens is None else rows(self.tokens),
        )
