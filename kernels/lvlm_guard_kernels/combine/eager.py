"""`combine` where torch runs it: sources are read at surviving tokens only, as long as these are few."""

import math

import torch
from torch import Tensor

from lvlm_guard_kernels.combination import RULED_OUT, Combination, Weight
from lvlm_guard_kernels.combine import reference
from lvlm_guard_kernels.combine.reference import DEMOTION

PIECES = 64
"""A row is cut into this many pieces that lie side by side; only columns whose best token survives are examined."""
FEW = {PIECES: 1 / 3, 1: 1 / 16}
"""Share of columns, or of tokens where a row cannot be cut, above which indexing costs more than reading everything."""


def combine(combination: Combination) -> Tensor:
    """Run `lvlm_guard_kernels.combine`."""
    main = combination.main
    if combination.beta <= 0.0 or main.device.type != "cpu" or main.numel() == 0:
        return reference.combine(combination)  # counting survivors would wait for a GPU
    eligible = combination.restrict(main.float())
    survivors = _find_survivors(eligible, combination.log_beta)
    if survivors is None:
        return reference.combine(combination)
    surviving = eligible.take(survivors)
    total = surviving * _take_weight(combination.main_weight, survivors, main)
    for source, weight in zip(combination.sources, combination.weights, strict=True):
        total += source.take(survivors).float() * _take_weight(weight, survivors, main)
    if combination.bias is not None:
        total += combination.bias.expand_as(main).take(survivors).float()
    total = torch.where(surviving <= RULED_OUT, surviving, total)
    return (eligible - DEMOTION).contiguous().put_(survivors, total)


def _find_survivors(eligible: Tensor, distance: float) -> Tensor | None:
    """Return flat indices of tokens at most `distance` (negative) from the best of their row.

    None where that does not pay, and where a row has no finite best token.
    """
    vocabulary = eligible.shape[-1]
    pieces = PIECES if vocabulary % PIECES == 0 else 1
    width = vocabulary // pieces
    pieced = eligible.reshape(-1, pieces, width)
    count = len(pieced)
    best = pieced.amax(1)
    threshold = best.amax(-1, keepdim=True).add_(distance)
    columns = (best >= threshold).view(-1).nonzero().view(-1)
    if len(columns) > FEW[pieces] * best.numel() or not math.isfinite(threshold if count == 1 else threshold.sum()):
        return None
    if count == 1:
        piece, index = (pieced[0].index_select(1, columns) >= threshold).nonzero().unbind(1)
        return columns[index] + piece * width
    row, column = columns.div(width, rounding_mode="floor"), columns % width
    index, piece = (pieced[row, :, column] >= threshold[row]).nonzero().unbind(1)
    return (row * vocabulary + column)[index] + piece * width


def _take_weight(weight: Weight, tokens: Tensor, main: Tensor) -> Weight:
    """Return a weight at the rows of tokens, which are flat indices into main."""
    if not isinstance(weight, Tensor):
        return weight
    return weight.expand(main.shape[:-1]).take(tokens.div(main.shape[-1], rounding_mode="floor")).float()
