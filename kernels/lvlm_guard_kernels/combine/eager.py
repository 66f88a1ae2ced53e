"""`combine` where torch runs it: sources are read at surviving tokens only, as long as these are few."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_guard_kernels.combine import reference
from lvlm_guard_kernels.combine.reference import DEMOTION

FEW = 1 / 16
"""Share of tokens above which indexing costs more than reading everything."""


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
    """As `lvlm_guard_kernels.combine`."""
    if beta <= 0.0 or main.is_cuda or main.numel() == 0:
        return reference.combine(
            main, sources, weights, main_weight=main_weight, beta=beta, bias=bias, keep=keep
        )  # a GPU would have to be waited for to learn how many survive
    eligible = main.float() if keep is None else main.float().masked_fill(~keep, -math.inf)
    best = eligible.amax(-1, keepdim=True)
    survivors = (eligible >= best + math.log(beta)).nonzero(as_tuple=True)
    if len(survivors[0]) > FEW * main.numel() or bool(best.isnan().any()):
        return reference.combine(main, sources, weights, main_weight=main_weight, beta=beta, bias=bias, keep=keep)
    standing = eligible[survivors]
    total = standing * _at(main_weight, survivors)
    for source, weight in zip(sources, weights, strict=True):
        total = total + source[survivors].float() * _at(weight, survivors)
    if bias is not None:
        total = total + bias.expand_as(main)[survivors].float()
    combined = eligible - DEMOTION
    combined[survivors] = torch.where(standing == -math.inf, standing, total)
    return combined


def _at(weight: float | Tensor, tokens: tuple[Tensor, ...]) -> float | Tensor:
    """A weight `[rows, positions]` at chosen tokens."""
    return weight[tokens[0], tokens[1]].float() if isinstance(weight, Tensor) else weight
