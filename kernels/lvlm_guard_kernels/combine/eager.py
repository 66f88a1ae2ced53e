"""`combine` where torch runs it: sources are read at surviving tokens only, as long as these are few."""

import math
from collections.abc import Sequence

from torch import Tensor

from lvlm_guard_kernels.combine import reference
from lvlm_guard_kernels.combine.reference import DEMOTION

PIECES = 64
"""A row is cut into so many pieces that lie beside each other; only columns whose best token survives are looked into."""
FEW = {PIECES: 1 / 3, 1: 1 / 16}
"""Share of columns, or of tokens where a row cannot be cut, above which indexing costs more than reading everything."""


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
    if beta <= 0.0 or main.device.type != "cpu" or main.numel() == 0:
        return reference.combine(
            main, sources, weights, main_weight=main_weight, beta=beta, bias=bias, keep=keep
        )  # a GPU would have to be waited for to learn how many survive
    eligible = main.float() if keep is None else main.float().masked_fill(~keep, -math.inf)
    survivors = _survivors(eligible.reshape(-1, main.shape[-1]), math.log(beta))
    if survivors is None:
        return reference.combine(main, sources, weights, main_weight=main_weight, beta=beta, bias=bias, keep=keep)
    total = eligible.take(survivors) * _at(main_weight, survivors, main)
    for source, weight in zip(sources, weights, strict=True):
        total += source.take(survivors).float() * _at(weight, survivors, main)
    if bias is not None:
        total += bias.expand_as(main).take(survivors).float()
    return (eligible - DEMOTION).contiguous().put_(survivors, total)


def _survivors(rows: Tensor, distance: float) -> Tensor | None:
    """Flat indices of tokens at most `distance` (negative) from the best of their row.

    None where that does not pay, and where a row has no finite best token.
    """
    count, vocabulary = rows.shape
    pieces = PIECES if vocabulary % PIECES == 0 else 1
    width = vocabulary // pieces
    pieced = rows.view(count, pieces, width)
    best = pieced.amax(1)
    threshold = best.amax(-1, keepdim=True).add_(distance)
    columns = (best >= threshold).view(-1).nonzero().view(-1)
    if len(columns) > FEW[pieces] * best.numel() or not math.isfinite(threshold.sum()):
        return None
    if count == 1:
        piece, which = (pieced[0].index_select(1, columns) >= threshold).nonzero().unbind(1)
        return columns[which] + piece * width
    row, column = columns.div(width, rounding_mode="floor"), columns % width
    which, piece = (pieced[row, :, column] >= threshold[row]).nonzero().unbind(1)
    return (row * vocabulary + column)[which] + piece * width


def _at(weight: float | Tensor, tokens: Tensor, main: Tensor) -> float | Tensor:
    """A weight `[rows, positions]` at the rows of chosen tokens."""
    if not isinstance(weight, Tensor):
        return weight
    return weight.take(tokens.div(main.shape[-1], rounding_mode="floor")).float()
