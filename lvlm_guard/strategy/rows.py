"""Tensors of one call that follow the rows of generate."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Rows:
    """Tensors with a row dimension that must follow the beams, and positions that must follow rejected candidates.

    Dimension 0 of every tensor is the rows of generate (batch times beams or returned sequences). The core selects
    rows when beams are reordered, and cuts dimension 1 of tensors put with `positions=True` (one entry per generated
    position) when candidates of assisted decoding are rejected.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._per_position: set[str] = set()

    def put(self, name: str, tensor: Tensor, *, positions: bool = False) -> None:
        """Keep `tensor` under `name`; with `positions`, dimension 1 counts generated positions."""
        self._tensors[name] = tensor
        (self._per_position.add if positions else self._per_position.discard)(name)

    def append(self, name: str, tensor: Tensor) -> None:
        """Append `[rows, positions, ...]` of this forward to the tensor under `name`."""
        earlier = self._tensors.get(name)
        self.put(name, tensor if earlier is None else torch.cat([earlier, tensor], dim=1), positions=True)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def select(self, index: Tensor) -> None:
        """Reorder the rows of every tensor."""
        for name, tensor in self._tensors.items():
            self._tensors[name] = tensor.index_select(0, index.to(tensor.device))

    def crop(self, positions: int) -> None:
        """Forget the generated positions from number `positions` on."""
        for name in self._per_position:
            self._tensors[name] = self._tensors[name][:, :positions]
