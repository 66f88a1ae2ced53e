"""The definition of `combine` in fp32 torch, and the oracle of the faster implementations."""

import math

import torch
from torch import Tensor

from lvlm_guard_kernels.combination import RULED_OUT, Combination, Weight

DEMOTION = 1e4
"""Implausible tokens get main's logit minus this: below every survivor, in main's order, and not removed."""


def combine(combination: Combination) -> Tensor:
    """Return what `lvlm_guard_kernels.combine` returns, reading every token."""
    main = combination.main.float()
    eligible = combination.restrict(main)
    total = main * to_column(combination.main_weight)
    for source, weight in zip(combination.sources, combination.weights, strict=True):
        total = total + source.float() * to_column(weight)
    if combination.bias is not None:
        total = total + combination.bias.float()
    if combination.beta > 0.0:
        # A comparison with NaN is false, so a row that holds one would pass as plausible: it is marked afterwards.
        best = eligible.amax(-1, keepdim=True)
        total = torch.where(eligible < best + combination.log_beta, eligible - DEMOTION, total)
        total = total.masked_fill(best.isnan(), math.nan)
    # Main's -inf times a weight of 0 or below would be NaN or +inf, and its least finite number overflows under weights:
    # what main rules out stays as it is.
    return torch.where(eligible <= RULED_OUT, eligible, total)


def to_column(weight: Weight) -> Weight:
    """Return a weight `[rows, positions]` as a column that broadcasts over the vocabulary."""
    return weight.float().unsqueeze(-1) if isinstance(weight, Tensor) else weight
