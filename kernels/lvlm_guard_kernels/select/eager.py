"""`select` where torch runs it: on a CPU survivors only, and noise only for tokens that the warpers leave."""

import math

import torch
from torch import Tensor

from lvlm_guard_kernels.combination import RULED_OUT, Combination, Weight
from lvlm_guard_kernels.combine.reference import combine
from lvlm_guard_kernels.select import reference
from lvlm_guard_kernels.select.bounds import Bound, find_bound
from lvlm_guard_kernels.select.draw import Draw

FEW = 1 / 16
"""Share of tokens above which indexing costs more than reading everything."""


def select(combination: Combination, draw: Draw) -> tuple[Tensor, Tensor]:
    """Run `lvlm_guard_kernels.select.reference.select`."""
    main = combination.main
    if main.device.type != "cpu" or main.numel() == 0:  # counting survivors would wait for a GPU
        return reference.select(combination, draw)
    scores, tokens = _list_survivors(combination, find_bound(combination, draw)) or _list_everything(combination)
    broken = reference.find_broken_rows(scores)
    if draw.greedy:
        return reference.choose_tokens(scores, tokens, broken, draw)
    warped = reference.warp_scores(scores, draw)
    alive = (warped > -math.inf).nonzero(as_tuple=True)
    packed = _pack(warped[alive], tokens[alive], alive[0], len(main))
    return reference.choose_tokens(*packed, broken, draw)


def _list_everything(combination: Combination) -> tuple[Tensor, Tensor]:
    """Return combined logits and ids of all tokens, `[rows, vocab]` each."""
    scores = reference.remove_implausible(combine(combination), combination)[:, 0]
    return scores, torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)


def _list_survivors(combination: Combination, bound: Bound | None) -> tuple[Tensor, Tensor] | None:
    """Return combined logits and ids of survivors, `[rows, most]` each.

    None where survivors are many, where NaN stands among them, and where a row has none above `-inf`.
    """
    survivors = _find_survivors(combination, bound)
    if survivors is None:
        return None
    main, (rows, tokens) = combination.main, survivors
    surviving = main[rows, 0, tokens].float()
    total = surviving * _take_weight(combination.main_weight, rows, main)
    for source, weight in zip(combination.sources, combination.weights, strict=True):
        total = total + source[rows, 0, tokens].float() * _take_weight(weight, rows, main)
    if combination.bias is not None:
        total = total + combination.bias.expand_as(main)[rows, 0, tokens].float()
    total = torch.where(surviving <= RULED_OUT, surviving, total)
    scores, ids = _pack(total, tokens, rows, len(main))
    return None if bool((scores == -math.inf).all(-1).any()) else (scores, ids)


def _find_survivors(combination: Combination, bound: Bound | None) -> tuple[Tensor, Tensor] | None:
    """Return rows and tokens that survive, or None where they are many or NaN stands among them."""
    if bound is None and combination.keep is None:
        return None
    eligible = combination.restrict(combination.main.float())[:, 0]
    best = eligible.amax(-1, keepdim=True)
    survives = eligible > -math.inf
    if bound is not None:
        least = best + bound.reach
        survives &= eligible >= (least if bound.slack == 0.0 else least - best.abs().nan_to_num(0.0, 0.0) * bound.slack)
    rows, tokens = survives.nonzero(as_tuple=True)
    return None if len(rows) > FEW * eligible.numel() or bool(best.isnan().any()) else (rows, tokens)


def _take_weight(weight: Weight, rows: Tensor, main: Tensor) -> Weight:
    """Return a weight at chosen rows of main."""
    return weight.expand(main.shape[:-1])[rows, 0].float() if isinstance(weight, Tensor) else weight


def _pack(values: Tensor, tokens: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return entries of `count` rows, listed in ascending order of rows, side by side; `-inf` fills up."""
    lengths = torch.bincount(rows, minlength=count)
    slots = torch.arange(len(rows), device=rows.device) - (lengths.cumsum(0) - lengths)[rows]
    shape = count, max(int(lengths.max()), 1)
    packed, ids = values.new_full(shape, -math.inf), tokens.new_zeros(shape)
    packed[rows, slots], ids[rows, slots] = values, tokens
    return packed, ids
