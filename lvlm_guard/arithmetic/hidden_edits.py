"""Edits of hidden states: named ones in one kernel, functions as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from lvlm_guard_kernels import KernelsUnavailable
from lvlm_guard_kernels.hidden import find_kernel
from torch import Tensor

from lvlm_guard.arithmetic import fusion
from lvlm_guard.errors import InputError, quote
from lvlm_guard.strategy.edits import HiddenEdit
from lvlm_guard.strategy.hidden_operations import HiddenOperation, Project, Shift, Turn, find_vectors

NAMES = {Turn: "turn", Project: "project", Shift: "shift"}
Kernels: TypeAlias = dict[Any, Callable[..., Tensor]]
"""Kernels of one call, by kind of edit and shapes: neither is looked at twice."""


def apply_edit(edit: HiddenEdit, hidden: Tensor, view: Any, kernels: Kernels) -> Tensor:
    """Return what an edit makes of hidden states `[rows, positions, hidden]`, in fp32 or their own dtype.

    Args:
        edit: The edit.
        hidden: The states.
        view: What the functions of the edit may look at.
        kernels: What was found before in this call; empty at its start.

    Raises:
        InputError: The vectors of a named edit do not fit the states.
        KernelsRefused: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    operation = edit.edit
    if operation.__class__ not in NAMES:
        edited: Tensor = operation(hidden, view)  # type: ignore[operator] # what has no name is a function
        return edited
    vectors = _place_vectors(operation, hidden, view)  # type: ignore[arg-type] # as above
    key = id(edit), hidden.shape, vectors.shape
    compute = kernels.get(key)
    if compute is None:
        compute = kernels[key] = _find_kernel(operation, hidden, vectors)
    if not torch.is_autocast_enabled(hidden.device.type):
        return compute(hidden, vectors)
    with torch.autocast(hidden.device.type, enabled=False):
        return compute(hidden, vectors)


def _place_vectors(operation: HiddenOperation, hidden: Tensor, view: Any) -> Tensor:
    vectors: Any = find_vectors(operation)
    if not isinstance(vectors, Tensor):
        vectors = vectors(hidden, view)
        if not isinstance(vectors, Tensor):
            raise InputError(f"The function of {type(operation).__name__} must return a tensor, got {quote(vectors)}.")
    return vectors.to(hidden.device)


def _find_kernel(operation: Any, hidden: Tensor, vectors: Tensor) -> Callable[..., Tensor]:
    """Return an operation as a function of states and vectors of these shapes."""
    try:
        compute = find_kernel(NAMES[type(operation)], hidden, vectors, operation.strength)
    except (ValueError, KernelsUnavailable) as error:
        raise fusion.translate_error(error) from error
    opposed = {"opposed": operation.opposed} if isinstance(operation, Turn) else {}
    return functools.partial(compute, strength=operation.strength, **opposed)
