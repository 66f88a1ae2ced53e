"""How far logits are apart, and how far they may be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_TOLERANCE = 2e-4
ROUNDINGS = 32
"""Units of rounding that two ways of computing the same logits may be apart."""
POWER = 0.02
"""Smallest effect that proves anything."""
DISPUTED, DISPUTED_SHARE = 2, 0.02
"""Tokens, and share of the allowed ones, that may be forbidden on one side alone, where nothing is rounded."""
IMPLAUSIBLE = -1e3
"""Logits below are of tokens that a strategy or the model forbids."""


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the largest difference of equal logits of a model in this dtype, in units of their standard deviation."""
    return max(LEAST_TOLERANCE, ROUNDINGS * torch.finfo(dtype).eps)


def distance(left: Tensor, right: Tensor, plain: Tensor, tolerance: float = LEAST_TOLERANCE) -> float:
    """Return the largest difference of logits `[steps, vocab]` over tokens that neither side forbids.

    Each step is measured in units of the standard deviation of `plain` `[steps, vocab]`; NaN where there is one. At the edge of what is
    allowed rounding decides about a token or two, and about more of them the larger the `tolerance`; where the sides disagree about more
    than that, the distance is at least 1.
    """
    sides = [(logits > IMPLAUSIBLE) | logits.isnan() for logits in (left, right)]
    difference = torch.where(sides[0] & sides[1], (left - right).abs(), 0.0).amax(-1)
    figure = float((difference / _deviation(plain)).max())
    disputed, allowed = (sides[0] ^ sides[1]).sum(-1), (sides[0] | sides[1]).sum(-1)
    agree = bool((disputed <= ((DISPUTED_SHARE + tolerance) * allowed).clamp_min(DISPUTED)).all())
    return figure if agree or math.isnan(figure) else max(1.0, figure)


def effect(left: Tensor, plain: Tensor) -> float:
    """Return how far logits `[steps, vocab]` are from plain ones; a token that is forbidden on one side alone counts as 1."""
    if not torch.equal(left > IMPLAUSIBLE, plain > IMPLAUSIBLE):
        return max(1.0, distance(left, plain, plain))
    return distance(left, plain, plain)


def _deviation(plain: Tensor) -> Tensor:
    """Return the standard deviation `[steps]` of logits `[steps, vocab]` over tokens that are not forbidden."""
    allowed = plain > IMPLAUSIBLE
    values = torch.where(allowed, plain, 0.0)
    size = allowed.sum(-1).clamp_min(1)
    mean = values.sum(-1) / size
    squares = torch.where(allowed, (plain - mean[:, None]) ** 2, 0.0).sum(-1)
    return (squares / size).sqrt().clamp_min(torch.finfo(plain.dtype).tiny)
