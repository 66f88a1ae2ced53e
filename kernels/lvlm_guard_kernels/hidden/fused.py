"""Edits of hidden states in Triton: one program reads the state of one position, edits it and writes it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_guard_kernels import launch
from lvlm_guard_kernels.hidden.reference import TINY

LANES = 32
NUMBERS_PER_LANE = 16

_TINY = tl.constexpr(TINY)


@triton.jit
def _load_state(hidden, hidden_outer, hidden_inner, places, width, WIDTH: tl.constexpr):
    """Return the state of the program's position in fp32, where it is written, and its place as outer and inner index."""
    place = tl.program_id(0).to(tl.int64)
    outer, inner = place // places, place % places
    lane = tl.arange(0, WIDTH)
    state = tl.load(hidden + outer * hidden_outer + inner * hidden_inner + lane, mask=lane < width, other=0.0)
    return state.to(tl.float32), place, outer, inner


@triton.jit
def _load_direction(direction, outer, inner, width, WIDTH: tl.constexpr):
    lane = tl.arange(0, WIDTH)
    return tl.load(direction + outer + inner + lane, mask=lane < width, other=0.0).to(tl.float32)


@triton.jit
def _measure_norm(state):
    """Return the Euclidean norm of a state."""
    return tl.sqrt_rn(tl.sum(state * state, axis=0))


@triton.jit
def turn_states(
    hidden, hidden_outer, hidden_inner, direction, direction_outer, direction_inner, out, places, width, strength,
    OPPOSED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Turn one state towards a direction, and give it back its norm."""
    state, place, outer, inner = _load_state(hidden, hidden_outer, hidden_inner, places, width, WIDTH)
    toward = _load_direction(direction, outer * direction_outer, inner * direction_inner, width, WIDTH)
    size = _measure_norm(state)
    pull = size
    if OPPOSED:
        pull = tl.maximum(size, size - tl.sum(state * toward, axis=0))
    turned = state + strength * (pull * toward)
    turned = turned * (size / (_measure_norm(turned) + _TINY))
    lane = tl.arange(0, WIDTH)
    tl.store(out + place * width + lane, turned.to(out.dtype.element_ty), mask=lane < width)


@triton.jit
def project_states(
    hidden, hidden_outer, hidden_inner, directions, directions_outer, directions_apart, out, places, width, count,
    strength, WIDTH: tl.constexpr,
):  # fmt: skip
    """Remove from one state a share of what lies along each of some directions."""
    state, place, outer, _ = _load_state(hidden, hidden_outer, hidden_inner, places, width, WIDTH)
    removed = tl.zeros([WIDTH], tl.float32)
    for number in range(count):
        toward = _load_direction(directions, outer * directions_outer, number * directions_apart, width, WIDTH)
        removed += tl.sum(state * toward, axis=0) * toward
    lane = tl.arange(0, WIDTH)
    edited = state - strength * removed
    tl.store(out + place * width + lane, edited.to(out.dtype.element_ty), mask=lane < width)


@triton.jit
def shift_states(
    hidden, hidden_outer, hidden_inner, vector, vector_outer, vector_inner, out, places, width, strength,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Add a multiple of a vector to one state."""
    state, place, outer, inner = _load_state(hidden, hidden_outer, hidden_inner, places, width, WIDTH)
    toward = _load_direction(vector, outer * vector_outer, inner * vector_inner, width, WIDTH)
    lane = tl.arange(0, WIDTH)
    shifted = state + strength * toward
    tl.store(out + place * width + lane, shifted.to(out.dtype.element_ty), mask=lane < width)


def turn(hidden: Tensor, direction: Tensor, strength: float, *, opposed: bool) -> Tensor:
    """Run `lvlm_guard_kernels.turn`, in the dtype of the states."""
    return _run(turn_states, hidden, _spread(direction, hidden), strength, OPPOSED=opposed)


def shift(hidden: Tensor, vector: Tensor, strength: float) -> Tensor:
    """Run `lvlm_guard_kernels.shift`, in the dtype of the states."""
    return _run(shift_states, hidden, _spread(vector, hidden), strength)


def project(hidden: Tensor, directions: Tensor, strength: float) -> Tensor:
    """Run `lvlm_guard_kernels.project`, in the dtype of the states."""
    states = _stack(hidden)
    directions = _put_side_by_side(directions.expand(len(states), *directions.shape[-2:]))
    return _run(project_states, hidden, directions, strength, count=directions.shape[1])


def _run(
    kernel: Any, hidden: Tensor, operand: Tensor, strength: float, count: int | None = None, **constants: Any
) -> Tensor:
    """Launch one program for each state, and return what they write."""
    states = _put_side_by_side(_stack(hidden))
    out = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    outer, places, width = states.shape
    if out.numel():
        block = launch.round_up(width)
        numbers = () if count is None else (count,)
        arguments = *_view(states), *_view(operand), out, places, width, *numbers, strength
        warps = min(max(block // (LANES * NUMBERS_PER_LANE), 1), 16)
        with launch.use_device(hidden):
            launch.run(
                kernel, (outer * places,), arguments, **constants, WIDTH=block, num_warps=warps, enable_fp_fusion=False
            )
    return out


def _view(values: Tensor) -> tuple[Tensor, int, int]:
    return values, values.stride(0), values.stride(1)


def _stack(hidden: Tensor) -> Tensor:
    """Return states `[..., hidden]` as `[outer, inner, hidden]`."""
    while hidden.ndim < 3:
        hidden = hidden.unsqueeze(0)
    return hidden.flatten(0, -3)


def _spread(direction: Tensor, hidden: Tensor) -> Tensor:
    """Return directions that broadcast to states as `[outer, inner, hidden]`, without a copy where strides can say it."""
    return _put_side_by_side(_stack(direction.expand(hidden.shape)))


def _put_side_by_side(values: Tensor) -> Tensor:
    return values if values.stride(-1) == 1 or values.shape[-1] <= 1 else values.contiguous()
