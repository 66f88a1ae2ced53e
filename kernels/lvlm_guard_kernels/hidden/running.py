"""Edits of hidden states in the implementation of a call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lvlm_guard_kernels.dispatch import choose_provider
from lvlm_guard_kernels.hidden import eager

WIDEST = 32768
"""A program holds all of a state; states of more numbers would spill."""


def find_obstacle(kernel: str, hidden: Tensor) -> str | None:
    """Return why states are left to torch, unless Triton is named: they are too wide for a program."""
    if hidden.shape[-1] <= WIDEST:
        return None
    return f"{kernel} takes hidden states of {WIDEST} numbers at most, and these have {hidden.shape[-1]}"


def choose_module(kernel: str, hidden: Tensor, operand: Tensor) -> Any:
    """Return the module that runs a kernel."""
    if choose_provider(kernel, hidden, operand, obstacle=find_obstacle(kernel, hidden)) == "torch":
        return eager
    from lvlm_guard_kernels.hidden import fused  # noqa: PLC0415 - Triton is loaded where it runs

    return fused
