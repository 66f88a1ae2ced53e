"""The definition of every edit of hidden states in fp32 torch, and the oracle of the faster implementations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

TINY = 1e-12
"""Added to a norm before something is divided by it: a state of zeros stays one."""


def turn(hidden: Tensor, direction: Tensor, strength: float, *, opposed: bool) -> Tensor:
    """Define `lvlm_guard_kernels.turn`, in fp32."""
    hidden, direction = widen(hidden), widen(direction)
    size = _measure_norm(hidden)
    pull = size
    if opposed:
        pull = size - (hidden * direction).sum(-1, keepdim=True).clamp_max_(0.0)
    turned = torch.addcmul(hidden, pull, direction, value=strength)
    return turned.mul_(size / _measure_norm(turned).add_(TINY))


def project(hidden: Tensor, directions: Tensor, strength: float) -> Tensor:
    """Define `lvlm_guard_kernels.project`, in fp32."""
    if is_autocast(hidden):
        with torch.autocast(hidden.device.type, enabled=False):
            return project(hidden, directions, strength)
    hidden, directions = widen(hidden), widen(directions)
    return torch.sub(hidden, hidden @ directions.mT @ directions, alpha=strength)


def shift(hidden: Tensor, vector: Tensor, strength: float) -> Tensor:
    """Define `lvlm_guard_kernels.shift`, in fp32."""
    return torch.add(widen(hidden), widen(vector), alpha=strength)


def widen(values: Tensor) -> Tensor:
    """Return values in fp32; those that are in it already are not even handed to torch, which takes longer than asking."""
    return values if values.dtype is torch.float32 else values.float()


def is_autocast(values: Tensor) -> bool:
    """Return whether autocast would take matrix products on the device of some values in another dtype than theirs."""
    if values.is_cpu:
        return torch.is_autocast_enabled("cpu")
    device = values.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _measure_norm(hidden: Tensor) -> Tensor:
    """Return the Euclidean norms `[..., 1]` of hidden states `[..., hidden]`."""
    norms: Tensor = vector_norm(hidden, 2, -1, True)  # noqa: FBT003 - named arguments cost as much as the operation
    return norms
