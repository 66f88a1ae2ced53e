"""`combine` where torch runs it: sources are read at surviving tokens only, as long as these are few."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_guard_kernels.combine import reference
from lvlm_guard_kernels.combine.reference import DEMOTION

FEW = 1 / 16
"""Share of tokens above which indexing costs more than reading everything."""
PIECES = 64
"""A row is cut into so many pieces that lie beside each other; only columns whose best token survives are looked into."""


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
    survivors = _survivors(eligible.reshape(-1, main.shape[-1]), math.log(beta))
    if survivors is None:
        return reference.combine(main, sources, weights, main_weight=main_weight, beta=beta, bias=bias, keep=keep)
    rows = survivors.div(main.shape[-1], rounding_mode="floor")
    standing = eligible.take(survivors)
    total = standing * _at(main_weight, rows)
    for source, weight in zip(sources, weights, strict=True):
        total = total + source.take(survivors).float() * _at(weight, rows)
    if bias is not None:
        total = total + bias.expand_as(main).take(survivors).float()
    combined = (eligible - DEMOTION).contiguous()
    return combined.put_(survivors, torch.where(standing == -math.inf, standing, total))


def _survivors(rows: Tensor, distance: float) -> Tensor | None:
    """Flat indices of tokens at most `distance` (negative) from the best of their row; None where that does not pay."""
    count, vocabulary = rows.shape
    pieces = PIECES if vocabulary % PIECES == 0 else 1
    pieced = rows.view(count, pieces, vocabulary // pieces)
    best = pieced.amax(1)
    threshold = best.amax(-1, keepdim=True) + distance
    columns = (best >= threshold).nonzero()
    row, column = columns.unbind(1)
    if len(columns) > FEW * best.numel() or bool(threshold.sum().isnan()):
        return None
    inside = (pieced[row, :, column] >= threshold[row]).nonzero()
    which, piece = inside.unbind(1)
    return (row * vocabulary + column)[which] + piece * (vocabulary // pieces)


def _at(weight: float | Tensor, rows: Tensor) -> float | Tensor:
    """A weight `[rows, positions]` at the rows of chosen tokens."""
    return weight.take(rows).float() if isinstance(weight, Tensor) else weight
