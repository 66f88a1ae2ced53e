"""Edits of hidden states: named ones in one kernel, functions as they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable
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
Compute: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Placed: TypeAlias = tuple[Any, torch.Size, torch.Size, torch.dtype, Compute]
"""Vectors that fit as they are, or None, and their shape; shape and dtype of the states; the kernel that was found for them."""
Kernels: TypeAlias = "dict[int, BoundEdit]"
"""Named edits of one call by the identity of their `HiddenEdit`."""


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
    bound = kernels.get(id(edit))
    if bound is not None:
        return bound.apply(hidden, view)
    operation = edit.edit
    if operation.__class__ not in NAMES:
        edited: Tensor = operation(hidden, view)  # type: ignore[operator] # what has no name is a function
        return edited
    bound = kernels[id(edit)] = BoundEdit(operation)  # type: ignore[arg-type] # as above
    return bound.apply(hidden, view)


class BoundEdit:
    """A named edit in one call, which checks what it is given once for each layer, and again when that changes.

    Args:
        operation: The edit's value.
    """

    def __init__(self, operation: HiddenOperation) -> None:
        self._operation = operation
        vectors = find_vectors(operation)
        self._find = vectors if not isinstance(vectors, Tensor) else None
        self._vectors: Any = vectors
        self._placed: dict[int, Placed] = {}
        self._computes: dict[Hashable, Compute] = {}

    def apply(self, hidden: Tensor, view: Any) -> Tensor:
        """Return what the edit makes of states `[rows, positions, hidden]` of the layer of a view."""
        vectors: Any = self._vectors if self._find is None else self._find(hidden, view)
        placed = self._placed.get(view.layer)
        if placed is not None:
            before, shape, states, dtype, compute = placed
            if before is vectors and vectors.shape == shape and hidden.shape == states and hidden.dtype is dtype:
                return compute(hidden, vectors)
        return self._place(hidden, vectors, view.layer)

    def _place(self, hidden: Tensor, vectors: Any, layer: int) -> Tensor:
        """Check vectors and bring them to the states, remember those that were there already, and compute."""
        if not isinstance(vectors, Tensor):
            kind = type(self._operation).__name__
            raise InputError(f"The function of {kind} must return a tensor, got {quote(vectors)}.")
        moved = vectors.to(hidden.device)
        key = hidden.shape, hidden.dtype, hidden.device, moved.shape, moved.dtype, moved.layout
        compute = self._computes.get(key)
        if compute is None:
            compute = self._computes[key] = _find_kernel(self._operation, hidden, moved)
        before = vectors if moved is vectors else None
        self._placed[layer] = before, moved.shape, hidden.shape, hidden.dtype, compute
        return compute(hidden, moved)


def _find_kernel(operation: HiddenOperation, hidden: Tensor, vectors: Tensor) -> Compute:
    """Return an operation as a function of states and vectors of these shapes."""
    strength = operation.strength
    try:
        compute = find_kernel(NAMES[type(operation)], hidden, vectors, strength)
    except (ValueError, KernelsUnavailable) as error:
        raise fusion.translate_error(error) from error
    if isinstance(operation, Turn):
        opposed = operation.opposed
        return lambda states, direction: compute(states, direction, strength, opposed=opposed)
    return lambda states, vector: compute(states, vector, strength)
