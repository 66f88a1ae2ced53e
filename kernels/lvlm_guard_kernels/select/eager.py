"""`select` where torch runs it: on a CPU survivors only, and noise for those only that the warpers leave."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_guard_kernels.combine import reference as combining
from lvlm_guard_kernels.select import reference
from lvlm_guard_kernels.select.draw import Draw

FEW = 1 / 16
"""Share of tokens above which indexing costs more than reading everything."""


def select(
    main: Tensor,
    sources: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    draw: Draw,
    *,
    main_weight: float | Tensor,
    beta: float,
    bias: Tensor | None,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `lvlm_guard_kernels.select.reference.select`."""
    if main.device.type != "cpu" or main.numel() == 0:  # a GPU would have to be waited for to learn how many survive
        return reference.select(main, sources, weights, draw, main_weight=main_weight, beta=beta, bias=bias, keep=keep)
    standing = _standing(main, beta, keep)
    found = None if standing is None else _listed(main, sources, weights, main_weight, bias, standing)
    if found is None:
        combined = combining.combine(main, sources, weights, main_weight=main_weight, beta=beta, bias=bias, keep=keep)
        scores = reference.plausible(combined, main, beta, keep)[:, 0]
        found = scores, torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
    scores, tokens = found
    broken = reference.no_token(scores)
    if draw.greedy:
        return reference.chosen(scores, tokens, broken, draw)
    warped = reference.gaps(scores, draw)
    alive = (warped > -math.inf).nonzero(as_tuple=True)
    return reference.chosen(*_packed(warped[alive], tokens[alive], alive[0], len(main)), broken, draw)


def _standing(main: Tensor, beta: float, keep: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Rows and tokens that survive; None where they are many, or where NaN stands among them."""
    if beta <= 0.0 and keep is None:
        return None
    eligible = (main.float() if keep is None else main.float().masked_fill(~keep, -math.inf))[:, 0]
    best = eligible.amax(-1, keepdim=True)
    standing = eligible > -math.inf
    if beta > 0.0:
        standing &= eligible >= best + math.log(beta)
    rows, tokens = standing.nonzero(as_tuple=True)
    return None if len(rows) > FEW * main.numel() or bool(best.isnan().any()) else (rows, tokens)


def _listed(
    main: Tensor,
    sources: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    main_weight: float | Tensor,
    bias: Tensor | None,
    standing: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor] | None:
    """Combined logits and ids of survivors, `[rows, most]` each; None where a row has none above `-inf`."""
    rows, tokens = standing
    total = main[rows, 0, tokens].float() * _at(main_weight, rows)
    for source, weight in zip(sources, weights, strict=True):
        total = total + source[rows, 0, tokens].float() * _at(weight, rows)
    if bias is not None:
        total = total + bias.expand_as(main)[rows, 0, tokens].float()
    scores, ids = _packed(total, tokens, rows, len(main))
    return None if bool((scores == -math.inf).all(-1).any()) else (scores, ids)


def _at(weight: float | Tensor, rows: Tensor) -> float | Tensor:
    """A weight `[rows, 1]` at chosen rows."""
    return weight[rows, 0].float() if isinstance(weight, Tensor) else weight


def _packed(values: Tensor, tokens: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Entries of `count` rows, in ascending order of rows, side by side; `-inf` fills up."""
    lengths = torch.bincount(rows, minlength=count)
    slots = torch.arange(len(rows), device=rows.device) - (lengths.cumsum(0) - lengths)[rows]
    shape = count, max(int(lengths.max()), 1)
    packed, ids = values.new_full(shape, -math.inf), tokens.new_zeros(shape)
    packed[rows, slots], ids[rows, slots] = values, tokens
    return packed, ids
