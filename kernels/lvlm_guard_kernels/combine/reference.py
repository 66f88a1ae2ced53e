"""The definition of `combine` in fp32 torch: the oracle of the faster ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DEMOTION = 1e4


def combine(
    main: Tensor,
    sources: Sequence[Tensor] = (),
    weights: Sequence[float | Tensor] = (),
    *,
    main_weight: float | Tensor = 1.0,
    beta: float = 0.0,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """What `lvlm_guard_kernels.combine` gives, over every token."""
    main = main.float()
    eligible = main if keep is None else main.masked_fill(~keep, -math.inf)
    total = main * column(main_weight)
    for source, weight in zip(sources, weights, strict=True):
        total = total + source.float() * column(weight)
    if bias is not None:
        total = total + bias.float()
    if beta > 0.0:
        best = eligible.amax(-1, keepdim=True)
        total = torch.where(eligible < best + math.log(beta), eligible - DEMOTION, total)
        total = total.masked_fill(best.isnan(), math.nan)
    return torch.where(eligible == -math.inf, eligible, total)


def column(weight: float | Tensor) -> float | Tensor:
    """A weight `[rows, positions]` as a column over the vocabulary."""
    return weight.float().unsqueeze(-1) if isinstance(weight, Tensor) else weight
