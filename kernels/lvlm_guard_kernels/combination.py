"""What a forward's logits are combined from, as one value that every kernel takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from lvlm_guard_kernels.dispatch import refuse_transforms

Weight: TypeAlias = float | Tensor

_DIMENSIONS = 2, 3

RULED_OUT = -1e30
"""Main's logits from here down rule their token out: some models write the least finite number where others write `-inf`."""


@dataclass(frozen=True, eq=False)
class Combination:
    """Weighted logits, a plausibility bound, a bias and a restriction; with main alone it is neutral.

    Every tensor is on main's device. Shapes and dtypes are checked here and nowhere else; no value is read, so
    nothing waits for the device.

    Args:
        main: Raw logits `[rows, positions, vocab]` or `[rows, vocab]` of any float dtype and strides.
        sources: Further logits of main's shape, of any float dtype and strides; read only where main survives.
        weights: One per source: a number, or a tensor that broadcasts to main's shape without the vocabulary; one number per row,
            `[rows]`, is a weight too.
        main_weight: Weight of main itself, like those of sources; 1 is neutral.
        beta: Tokens below `beta` times main's best probability are implausible; from 0, which is neutral, to 1.
        bias: Of any real dtype, broadcastable to main; added to tokens that survive.
        keep: Bool, broadcastable to main; tokens outside are removed, and plausibility is measured inside.

    Raises:
        ValueError: A shape or dtype does not fit, weights and sources differ in number, or `beta` is out of range.
    """

    main: Tensor
    sources: Sequence[Tensor] = ()
    weights: Sequence[Weight] = ()
    main_weight: Weight = 1.0
    beta: float = 0.0
    bias: Tensor | None = None
    keep: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "weights", tuple(map(self._place_weight, self.weights)))
        object.__setattr__(self, "main_weight", self._place_weight(self.main_weight))
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"Combination: beta must lie between 0 and 1, got {self.beta}.")
        if len(self.sources) != len(self.weights):
            raise ValueError(
                f"Combination: {len(self.sources)} sources have {len(self.weights)} weights. Give one weight per source."
            )
        self._check_logits()
        self._check_broadcasts()

    def _place_weight(self, weight: Weight) -> Weight:
        """Return a weight of rows as `[rows, 1]` where main has positions, and as `[rows]` where it has none."""
        if not isinstance(weight, Tensor):
            return weight
        if self.main.dim() == min(_DIMENSIONS):
            return weight.squeeze(1) if weight.dim() == min(_DIMENSIONS) else weight
        if weight.dim() != 1 or self.main.dim() != max(_DIMENSIONS):
            return weight
        rows, positions = self.main.shape[:2]
        if len(weight) == rows == positions > 1:
            raise ValueError(
                f"Combination: a weight of shape {_show(weight.shape)} may be of rows or of positions, of which there are "
                "as many. Write [rows, 1] or [1, positions]."
            )
        return weight.unsqueeze(1) if len(weight) == rows != positions else weight

    def _check_logits(self) -> None:
        """Refuse main or sources of another shape or dtype than they must have."""
        shape = self.main.shape
        if len(shape) not in _DIMENSIONS:
            raise ValueError(
                f"Combination: main must be [rows, positions, vocab] or [rows, vocab], got {_show(shape)}."
            )
        for source in self.sources:
            if source.shape != shape:
                raise ValueError(
                    f"Combination: a source of shape {_show(source.shape)} does not fit main of shape {_show(shape)}."
                )
        check_logits("Combination", self.main, *self.sources)

    def _check_broadcasts(self) -> None:
        """Refuse weights, a bias or a restriction that do not broadcast, or are of another dtype than they must have."""
        for weight in (self.main_weight, *self.weights):
            if isinstance(weight, Tensor):
                self._check_part("a weight", weight, self.main.shape[:-1])
        if self.bias is not None:
            self._check_part("bias", self.bias, self.main.shape)
        if self.keep is not None:
            self._check_part("keep", self.keep, self.main.shape)
            if self.keep.dtype != torch.bool:
                raise ValueError(f"Combination: keep must be a bool tensor, got {self.keep.dtype}.")

    def _check_part(self, name: str, value: Tensor, shape: torch.Size) -> None:
        """Refuse a tensor that does not broadcast, lies elsewhere than main, is not dense, or is complex."""
        refuse_transforms("Combination", value)
        _check_broadcast(name, value, shape)
        if value.device != self.main.device:
            raise ValueError(f"Combination: {name} lies on {value.device}, and main on {self.main.device}.")
        if value.layout != torch.strided or value.is_complex():
            raise ValueError(f"Combination: {name} must be dense and real, got {value.layout} of {value.dtype}.")

    @property
    def log_beta(self) -> float:
        """Distance of the least plausible logit from main's best one: `ln beta`, or 0 without a bound."""
        return math.log(self.beta) if self.beta > 0.0 else 0.0

    def restrict(self, logits: Tensor) -> Tensor:
        """Return logits of main's shape with tokens outside the restriction at `-inf`."""
        return logits if self.keep is None else logits.masked_fill(~self.keep, -math.inf)

    def with_positions(self) -> Combination:
        """Return the same combination with main as `[rows, positions, vocab]`."""
        if self.main.dim() == max(_DIMENSIONS):
            return self
        return replace(
            self,
            main=self.main.unsqueeze(1),
            sources=[source.unsqueeze(1) for source in self.sources],
            weights=[_add_weight_position(weight) for weight in self.weights],
            main_weight=_add_weight_position(self.main_weight),
            bias=None if self.bias is None else _add_position(self.bias, 2),
            keep=None if self.keep is None else _add_position(self.keep, 2),
        )


def _add_position(value: Tensor, dimensions: int) -> Tensor:
    """Return a tensor with a position after its rows; one of fewer dimensions than `dimensions` has no rows."""
    return value.unsqueeze(1) if value.dim() == dimensions else value


def _add_weight_position(weight: Weight) -> Weight:
    return _add_position(weight, 1) if isinstance(weight, Tensor) else weight


Function = TypeVar("Function", bound=Callable[..., Any])


def without_gradient(function: Function) -> Function:
    """Let a function of tensors never be differentiated, whichever implementation runs."""

    @functools.wraps(function)
    def call(*args: Any, **settings: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*args, **settings)
        with torch.no_grad():
            return function(*args, **settings)

    return cast("Function", call)


def check_logits(kernel: str, main: Tensor, *sources: Tensor) -> None:
    """Refuse logits that are not dense, of a float dtype, and on the device of main."""
    refuse_transforms(kernel, main, *sources)
    for logits in (main, *sources):
        if not logits.is_floating_point():
            raise ValueError(f"{kernel}: logits must be of a float dtype, got {logits.dtype}.")
        if logits.layout != torch.strided:
            raise ValueError(f"{kernel}: logits must be dense, got {logits.layout}.")
        if logits.device != main.device:
            raise ValueError(f"{kernel}: logits lie on {logits.device} and on {main.device}; move them to one device.")


def _check_broadcast(name: str, value: Tensor, shape: torch.Size) -> None:
    """Refuse a tensor that does not broadcast to a shape."""
    if value.shape == shape:
        return
    sizes = range(1, value.dim() + 1)
    if value.dim() > len(shape) or any(value.shape[-at] not in (1, shape[-at]) for at in sizes):
        raise ValueError(f"Combination: {name} of shape {_show(value.shape)} does not broadcast to {_show(shape)}.")


def _show(shape: Sequence[int]) -> str:
    return str(tuple(shape))
