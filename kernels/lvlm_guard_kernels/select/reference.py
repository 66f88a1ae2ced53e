"""The definition of `select` in torch, over every token, and the oracle of the faster implementations."""

import math

import torch
from torch import Tensor

from lvlm_guard_kernels.combination import Combination
from lvlm_guard_kernels.combine.reference import combine
from lvlm_guard_kernels.select.draw import Draw
from lvlm_guard_kernels.select.noise import gumbel

UNIT = 2.0**40
"""Masses are whole numbers, this one for the best token: their sums are exact in any order."""


def select(combination: Combination, draw: Draw) -> tuple[Tensor, Tensor]:
    """Return ids `[rows]` and broken rows as `lvlm_guard_kernels.select` does, for main `[rows, 1, vocab]`."""
    scores = remove_implausible(combine(combination), combination)[:, 0]
    tokens = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
    warped = scores if draw.greedy else warp_scores(scores, draw)
    return choose_tokens(warped, tokens, find_broken_rows(scores), draw)


def remove_implausible(combined: Tensor, combination: Combination) -> Tensor:
    """Return combined logits with implausible tokens at `-inf` in rows where a plausible one is above it."""
    if combination.beta <= 0.0:
        return combined
    eligible = combination.restrict(combination.main.float())
    threshold = eligible.amax(-1, keepdim=True) + combination.log_beta
    plausible = combined.masked_fill(eligible < threshold, -math.inf)
    return torch.where((plausible == -math.inf).all(-1, keepdim=True), combined, plausible)


def find_broken_rows(scores: Tensor) -> Tensor:
    """Return the rows `[rows]` from which nothing can be drawn: a score is NaN, or all are `-inf`."""
    return scores.isnan().any(-1) | (scores == -math.inf).all(-1)


def warp_scores(scores: Tensor, draw: Draw) -> Tensor:
    """Return scores over the temperature, relative to the best; `-inf` where top-k or top-p removes."""
    scaled = scores / draw.temperature
    if draw.top_k:
        least = scaled.topk(min(draw.top_k, scaled.shape[-1])).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -math.inf)
    best = scaled.amax(-1, keepdim=True)
    # The best token is 0 by definition: where it is +inf, the difference would be NaN.
    relative = torch.where(scaled == best, 0.0, scaled - best).masked_fill(scores == -math.inf, -math.inf)
    return relative if draw.top_p == 1.0 else apply_top_p(relative, scaled, draw)


def apply_top_p(relative: Tensor, scaled: Tensor, draw: Draw) -> Tensor:
    """Remove from the least token up, of equal ones the highest id first, while no more than `1 - top_p` goes."""
    order = scaled.argsort(dim=-1, descending=True, stable=True).flip(-1)
    mass = (relative.gather(-1, order).exp() * UNIT).long().cumsum(-1)
    removed = mass <= (mass[..., -1:].double() * draw.removable_share).long()
    removed[..., -1] = False
    return relative.masked_fill(removed.scatter(-1, order, removed), -math.inf)


def choose_tokens(warped: Tensor, tokens: Tensor, broken: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Return the argmax of scores `[rows, n]` of tokens in ascending order, with noise unless greedy; -1 if broken."""
    if not draw.greedy:
        warped = warped + gumbel(draw.seed, draw.step, draw.identify_rows(len(warped), warped.device), tokens)
    best = tokens.gather(-1, warped.argmax(-1, keepdim=True))[:, 0]
    return best.masked_fill(broken, -1), broken
