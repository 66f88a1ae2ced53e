"""How a token is drawn from scores: settings, checked once."""

from __future__ import annotations

import operator
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_TEMPERATURE = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Draw:
    """Settings of `lvlm_guard_kernels.select` after the combined logits, with the same names.

    Raises:
        ValueError: A setting is outside its range.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int
    step: int | Tensor
    greedy: bool
    rows: Tensor | None

    def __post_init__(self) -> None:
        if not LEAST_TEMPERATURE <= self.temperature < sys.float_info.max:
            raise ValueError(f"The temperature must be positive, got {self.temperature}. Use greedy=True for zero.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 1, or 0 for all tokens, got {self.top_k}.")
        if not 0.0 <= self.top_p <= 1.0:
            raise ValueError(f"top_p must lie between 0 and 1, got {self.top_p}.")
        object.__setattr__(self, "seed", _read_whole("seed", self.seed))
        object.__setattr__(self, "top_k", _read_whole("top_k", self.top_k))
        if not isinstance(self.step, Tensor):
            object.__setattr__(self, "step", _read_whole("step", self.step))

    def check_tensors(self, main: Tensor) -> None:
        """Refuse a step that is not a whole number, and row ids that are not int64 `[rows]`, on main's device.

        Raises:
            ValueError: They are not.
        """
        step = self.step
        if isinstance(step, Tensor) and (
            step.numel() != 1 or step.dtype not in (torch.int32, torch.int64) or step.device != main.device
        ):
            raise ValueError(
                f"select: step must be a number, or one of int32 or int64 on {main.device}, got {step.dtype} "
                f"{tuple(step.shape)} on {step.device}."
            )
        ids = self.rows
        if ids is not None and (ids.shape != main.shape[:1] or ids.dtype != torch.int64 or ids.device != main.device):
            raise ValueError(
                f"select: rows must be int64 ({len(main)},) on {main.device}, got {ids.dtype} {tuple(ids.shape)} on "
                f"{ids.device}."
            )

    @property
    def signed_seed(self) -> int:
        """The 64 bits of the seed that count, as a number with a sign."""
        return (self.seed + 2**63) % 2**64 - 2**63

    @property
    def removable_share(self) -> float:
        """Share of the mass that top-p may remove, rounded to fp32."""
        return float(torch.tensor(1.0 - self.top_p, dtype=torch.float32, device="cpu"))

    def identify_rows(self, rows: int, device: torch.device) -> Tensor:
        """Return row ids `[rows]`, int64."""
        return torch.arange(rows, device=device) if self.rows is None else self.rows


def _read_whole(name: str, value: int) -> int:
    """Return a setting as a Python integer, which it may be under NumPy's name."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"select: {name} must be a whole number, got {value!r}.") from None
