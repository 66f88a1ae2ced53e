"""Edits of hidden states inside a layer: turned, projected or shifted, each by one launch.

States `[..., hidden]` may be of any float dtype and strides, vectors of any float dtype that broadcasts; arithmetic is in
fp32, and so is what torch returns, while Triton returns the dtype of the states. Nothing is differentiated.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from lvlm_guard_kernels.dispatch import refuse_transforms
from lvlm_guard_kernels.hidden import operator
from lvlm_guard_kernels.hidden.running import choose_module
from lvlm_guard_kernels.operators import is_traced

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_STACKED = 2


def turn(hidden: Tensor, direction: Tensor, strength: float, *, opposed: bool = False) -> Tensor:
    """Turn states towards a direction and keep their norms: `|x| norm(x + strength |x| u)`.

    Args:
        hidden: States `x` `[..., hidden]`.
        direction: `u`, which broadcasts to them; a unit vector, or zeros to leave a state alone.
        strength: 0 is neutral.
        opposed: Whether states that point away are turned further: by `strength (|x| + max(0, -x.u))`.

    Returns:
        States of the same shape.

    Raises:
        ValueError: A shape, dtype, device or the strength does not fit.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    if is_traced(hidden, direction):
        check_edit("turn", hidden, direction, strength)
        traced: Tensor = operator.turn(hidden, direction, float(strength), opposed)
        return traced
    compute = find_kernel("turn", hidden, direction, strength)
    with _without_gradient():
        turned: Tensor = compute(hidden, direction, strength, opposed=opposed)
    return turned


def project(hidden: Tensor, directions: Tensor, strength: float = 1.0) -> Tensor:
    """Remove from states what lies along directions: `x - strength * (sum of (x.v) v)`.

    Args:
        hidden: States `x` `[..., hidden]`.
        directions: `[k, hidden]`, orthonormal for a projection; or `[rows, k, hidden]` for states `[rows, positions, hidden]`.
        strength: 0 is neutral, 1 removes all of it.

    Returns:
        States of the same shape.

    Raises:
        ValueError: A shape, dtype, device or the strength does not fit.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    if is_traced(hidden, directions):
        check_edit("project", hidden, directions, strength)
        traced: Tensor = operator.project(hidden, directions, float(strength))
        return traced
    compute = find_kernel("project", hidden, directions, strength)
    with _without_gradient():
        projected: Tensor = compute(hidden, directions, strength)
    return projected


def shift(hidden: Tensor, vector: Tensor, strength: float = 1.0) -> Tensor:
    """Add a multiple of a vector to states: `x + strength v`.

    Args:
        hidden: States `x` `[..., hidden]`.
        vector: `v`, which broadcasts to them.
        strength: 0 is neutral.

    Returns:
        States of the same shape.

    Raises:
        ValueError: A shape, dtype, device or the strength does not fit.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    if is_traced(hidden, vector):
        check_edit("shift", hidden, vector, strength)
        traced: Tensor = operator.shift(hidden, vector, float(strength))
        return traced
    compute = find_kernel("shift", hidden, vector, strength)
    with _without_gradient():
        shifted: Tensor = compute(hidden, vector, strength)
    return shifted


def find_kernel(name: str, hidden: Tensor, operand: Tensor, strength: float) -> Callable[..., Tensor]:
    """Check that an edit fits, and return the function that computes it for all states and operands of these shapes.

    Args:
        name: `turn`, `project` or `shift`.
        hidden: States as the edit takes them.
        operand: Its direction, directions or vector.
        strength: Its strength.

    Returns:
        A function of the edit's own arguments, which does not turn gradients off.

    Raises:
        ValueError: A shape, dtype, device or the strength does not fit.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    check_edit(name, hidden, operand, strength)
    compute: Callable[..., Tensor] = getattr(choose_module(name, hidden, operand), name)
    return compute


_AS_IT_IS: AbstractContextManager[Any] = contextlib.nullcontext()


def _without_gradient() -> AbstractContextManager[Any]:
    """Turn gradients off where they are on, which in a layer of a guarded forward they are not."""
    return torch.no_grad() if torch.is_grad_enabled() else _AS_IT_IS


def check_edit(kernel: str, hidden: Tensor, operand: Tensor, strength: float) -> None:
    """Refuse what does not fit, as `find_kernel` does."""
    _check(kernel, hidden, operand, strength)
    if kernel == "project":
        _check_stacked(operand.shape, hidden.shape)
    else:
        _check_broadcast(kernel, operand.shape, hidden.shape)


def _check(kernel: str, hidden: Tensor, operand: Tensor, strength: float) -> None:
    """Refuse tensors that are not dense floats on one device, and a strength that is no finite number."""
    refuse_transforms(kernel, hidden, operand)
    for values in (hidden, operand):
        if values.dtype not in FLOATS or values.layout is not torch.strided:
            raise ValueError(
                f"{kernel}: tensors must be dense and of a float dtype, got {values.layout} of {values.dtype}."
            )
    if operand.device != hidden.device:
        raise ValueError(f"{kernel}: hidden states lie on {hidden.device}, and what edits them on {operand.device}.")
    if not math.isfinite(strength):
        raise ValueError(f"{kernel}: the strength must be a finite number, got {strength}.")


def _check_broadcast(kernel: str, shape: torch.Size, target: torch.Size) -> None:
    """Refuse a vector that does not broadcast to the states, the whole of `hidden` in its last dimension."""
    if shape == target or (shape == target[-1:] and shape):
        return
    pairs = zip(reversed(shape), reversed(target), strict=False)
    is_whole = 0 < len(shape) <= len(target) and shape[-1] == target[-1]
    if not is_whole or any(size not in (1, goal) for size, goal in pairs):
        raise ValueError(f"{kernel}: {tuple(shape)} does not broadcast to hidden states of shape {tuple(target)}.")


def _check_stacked(shape: torch.Size, target: torch.Size) -> None:
    """Refuse directions that are not stacked, for all states or for each row of them."""
    per_row = len(shape) == _STACKED + 1 == len(target) and shape[0] in (1, target[0])
    if shape[-1:] != target[-1:] or not (len(shape) == _STACKED or per_row):
        raise ValueError(
            f"project: directions of shape {tuple(shape)} are not [k, hidden] or [rows, k, hidden] for hidden states of "
            f"shape {tuple(target)}."
        )
