"""Edits of hidden states where torch runs them."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_guard_kernels.hidden import reference
from lvlm_guard_kernels.hidden.reference import is_autocast, widen

_STATES = 3

turn = reference.turn


def shift(hidden: Tensor, vector: Tensor, strength: float) -> Tensor:
    """Run `lvlm_guard_kernels.shift`, in fp32: adding fp32 to narrower states widens them on the way."""
    if hidden.dtype is torch.float64:
        return reference.shift(hidden, vector, strength)
    return torch.add(hidden, widen(vector), alpha=strength)


def project(hidden: Tensor, directions: Tensor, strength: float) -> Tensor:
    """Run `lvlm_guard_kernels.project`, in fp32: of states `[rows, positions, hidden]` in two products, the second of which subtracts."""
    if hidden.ndim != _STATES:
        return reference.project(hidden, directions, strength)
    if is_autocast(hidden):
        with torch.autocast(hidden.device.type, enabled=False):
            return project(hidden, directions, strength)
    hidden, directions = widen(hidden), widen(directions)
    directions = directions.expand(hidden.shape[0], -1, -1)
    return torch.baddbmm(hidden, torch.bmm(hidden, directions.mT), directions, alpha=-strength)
