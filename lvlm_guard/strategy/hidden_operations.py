"""What a `HiddenEdit` can do by name: values that the core computes in one kernel, where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ConfigDict, with_config
from torch import Tensor

from lvlm_guard.errors import InputError, quote

Vectors: TypeAlias = Tensor | Callable[[Tensor, Any], Tensor]
"""Vectors, or a function of the hidden states and a `View` that returns them for the layer and rows at hand."""

TENSORS = ConfigDict(arbitrary_types_allowed=True)
"""Fields may be tensors, which are not looked into."""


@with_config(TENSORS)
@dataclass(frozen=True, eq=False)
class Turn:
    """Turn hidden states towards a direction and keep their norms: `|x| norm(x + strength |x| u)`, in fp32.

    Args:
        direction: `u`, which broadcasts to the states `[rows, positions, hidden]`: `[hidden]` or `[rows, 1, hidden]`. Unit
            vectors, or zeros where states are left alone; or a function of the states and a `View` that returns them.
        strength: How far; 0 is neutral.
        opposed: Whether states that point away are turned further: by `strength (|x| + max(0, -x.u))`.

    Raises:
        InputError: The direction is neither tensor nor function, or the strength no finite number.
    """

    direction: Vectors
    strength: float
    opposed: bool = False

    def __post_init__(self) -> None:
        _check(self, "direction", self.direction, self.strength)


@with_config(TENSORS)
@dataclass(frozen=True, eq=False)
class Project:
    """Remove from hidden states what lies along directions: `x - strength * (sum of (x.v) v)`, in fp32.

    Args:
        directions: `[k, hidden]`, orthonormal for a projection, or `[rows, k, hidden]`; or a function of the states and a
            `View` that returns them.
        strength: Share that is removed; 0 is neutral.

    Raises:
        InputError: The directions are neither tensor nor function, or the strength is no finite number.
    """

    directions: Vectors
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check(self, "directions", self.directions, self.strength)


@with_config(TENSORS)
@dataclass(frozen=True, eq=False)
class Shift:
    """Add a vector to hidden states: `x + strength v`, in fp32.

    Args:
        vector: `v`, which broadcasts to the states as in `Turn`; or a function of the states and a `View` that returns it.
        strength: How much of it; 0 is neutral.

    Raises:
        InputError: The vector is neither tensor nor function, or the strength no finite number.
    """

    vector: Vectors
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check(self, "vector", self.vector, self.strength)


HiddenOperation: TypeAlias = Turn | Project | Shift


def find_vectors(operation: HiddenOperation) -> Vectors:
    """Return the vectors of an operation, or the function that gives them."""
    if isinstance(operation, Turn):
        return operation.direction
    return operation.directions if isinstance(operation, Project) else operation.vector


def _check(operation: object, name: str, vectors: Any, strength: Any) -> None:
    owner = type(operation).__name__
    if not (callable(vectors) or (isinstance(vectors, Tensor) and vectors.is_floating_point())):
        raise InputError(
            f"{owner}.{name} must be a tensor of floats or a function that returns one, got {quote(vectors)}."
        )
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise InputError(f"{owner}.strength must be a finite number, got {quote(strength)}.")
