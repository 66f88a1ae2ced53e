"""Edits of hidden states as operators of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_guard_kernels.dispatch import find_provider
from lvlm_guard_kernels.hidden.running import choose_module, find_obstacle
from lvlm_guard_kernels.operators import define


def _turn(hidden: Tensor, operand: Tensor, strength: float, opposed: bool) -> Tensor:
    turned: Tensor = choose_module("turn", hidden, operand).turn(hidden, operand, strength, opposed=opposed)
    return turned


def _project(hidden: Tensor, operand: Tensor, strength: float) -> Tensor:
    projected: Tensor = choose_module("project", hidden, operand).project(hidden, operand, strength)
    return projected


def _shift(hidden: Tensor, operand: Tensor, strength: float) -> Tensor:
    shifted: Tensor = choose_module("shift", hidden, operand).shift(hidden, operand, strength)
    return shifted


def _describe(hidden: Tensor, operand: Tensor, *settings: object) -> Tensor:
    """Return states of the dtype that the implementation gives them."""
    del settings
    provider = find_provider(hidden, operand, obstacle=find_obstacle("an edit", hidden))
    return hidden.new_empty(hidden.shape, dtype=torch.float32 if provider == "torch" else hidden.dtype)


_PARTS = "Tensor hidden, Tensor operand, float strength"
turn = define("turn", f"({_PARTS}, bool opposed) -> Tensor", _turn, _describe)
project = define("project", f"({_PARTS}) -> Tensor", _project, _describe)
shift = define("shift", f"({_PARTS}) -> Tensor", _shift, _describe)
