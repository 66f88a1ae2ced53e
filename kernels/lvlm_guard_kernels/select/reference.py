"""The definition of `select` in torch, over every token: the oracle of the faster ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_guard_kernels.combine import reference
from lvlm_guard_kernels.select.draw import Draw
from lvlm_guard_kernels.select.noise import gumbel

UNIT = 2.0**40
"""Masses are whole numbers of which the best token has so many: their sums are exact in any order."""


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
    """What `lvlm_guard_kernels.select` gives for main `[rows, 1, vocab]`: ids and what is broken."""
    combined = reference.combine(main, sources, weights, main_weight=main_weight, beta=beta, bias=bias, keep=keep)
    scores = plausible(combined, main, beta, keep)[:, 0]
    warped = scores if draw.greedy else gaps(scores, draw)
    return chosen(
        warped, torch.arange(scores.shape[-1], device=scores.device).expand_as(scores), no_token(scores), draw
    )


def plausible(combined: Tensor, main: Tensor, beta: float, keep: Tensor | None) -> Tensor:
    """Combined logits, implausible ones at `-inf` while a plausible one stands above it."""
    if beta <= 0.0:
        return combined
    eligible = main.float() if keep is None else main.float().masked_fill(~keep, -math.inf)
    standing = combined.masked_fill(eligible < eligible.amax(-1, keepdim=True) + math.log(beta), -math.inf)
    return torch.where((standing == -math.inf).all(-1, keepdim=True), combined, standing)


def no_token(scores: Tensor) -> Tensor:
    """Rows `[rows]` from which nothing can be drawn: a score is NaN, or all are `-inf`."""
    return scores.isnan().any(-1) | (scores == -math.inf).all(-1)


def gaps(scores: Tensor, draw: Draw) -> Tensor:
    """Scores over the temperature, relative to the best; `-inf` where top-k or top-p removes."""
    scaled = scores / draw.temperature
    if draw.top_k:
        least = scaled.topk(min(draw.top_k, scaled.shape[-1])).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -math.inf)
    best = scaled.amax(-1, keepdim=True)
    relative = torch.where(scaled == best, 0.0, scaled - best).masked_fill(scores == -math.inf, -math.inf)
    return relative if draw.top_p == 1.0 else nucleus(relative, scaled, draw)


def nucleus(relative: Tensor, scaled: Tensor, draw: Draw) -> Tensor:
    """Remove from the least token up, of equal ones the highest id first, while no more than `1 - top_p` goes."""
    order = scaled.argsort(dim=-1, descending=True, stable=True).flip(-1)
    mass = (relative.gather(-1, order).exp() * UNIT).long().cumsum(-1)
    removed = mass <= (mass[..., -1:].double() * draw.rest).long()
    removed[..., -1] = False
    return relative.masked_fill(removed.scatter(-1, order, removed), -math.inf)


def chosen(warped: Tensor, tokens: Tensor, broken: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Argmax of scores `[rows, n]` of tokens in ascending order, with noise unless greedy; -1 in broken rows."""
    if not draw.greedy:
        warped = warped + gumbel(draw.seed, draw.step, draw.names(len(warped), warped.device), tokens)
    best = tokens.gather(-1, warped.argmax(-1, keepdim=True))[:, 0]
    return best.masked_fill(broken, -1), broken
