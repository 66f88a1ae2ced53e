"""From a forward's terms to a token, for loops that own sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lvlm_guard_kernels.combination import Combination, Weight, without_gradient
from lvlm_guard_kernels.deprecation import accept_parts
from lvlm_guard_kernels.operators import flatten_combination, is_traced
from lvlm_guard_kernels.select import operator
from lvlm_guard_kernels.select.draw import Draw
from lvlm_guard_kernels.select.running import run_select

_WITHOUT_POSITIONS = 2


@dataclass(frozen=True)
class Selection:
    """Tokens of one step.

    Args:
        ids: int64 `[rows]`; -1 where there was nothing to choose from.
        broken: Bool `[rows]`: a combined logit is NaN, or every token is removed.
    """

    ids: Tensor
    broken: Tensor


def _combine_parts(
    main: Tensor,
    sources: Sequence[Tensor] = (),
    weights: Sequence[Weight] = (),
    *,
    main_weight: Weight = 1.0,
    beta: float = 0.0,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Combination:
    """Return the combination of parts of which each may have a position or not."""
    return Combination(
        _add_position(main),
        [_add_position(source) for source in sources],
        [_spread_over_rows(weight, len(main)) for weight in weights],
        _spread_over_rows(main_weight, len(main)),
        beta,
        None if bias is None else _add_position(bias),
        None if keep is None else _add_position(keep),
    )


def _add_position(values: Tensor) -> Tensor:
    return values.unsqueeze(1) if values.dim() == _WITHOUT_POSITIONS else values


def _spread_over_rows(weight: Weight, rows: int) -> Weight:
    return weight.reshape(-1, 1).expand(rows, 1) if isinstance(weight, Tensor) else weight


@accept_parts(_combine_parts)
@without_gradient
def select(
    combination: Combination,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    step: int | Tensor = 0,
    greedy: bool = False,
    rows: Tensor | None = None,
) -> Selection:
    """Draw a token for each row from the logits that `combine` returns; fast where few tokens survive.

    Implausible tokens are drawn only where every plausible one is at `-inf`. Temperature, top-k and top-p act in this
    order and as in transformers: top-k keeps all that equal its last token, top-p removes from the least token up what
    has `1 - top_p` of the mass left by top-k, of equal tokens the highest ids first. The draw is the argmax of
    log-probability and Gumbel noise; the noise is a function of seed, step, row id and token id alone, so a draw
    depends on no other row. Of equal scores the lowest id wins. Nothing is differentiated.

    Args:
        combination: Logits and what is done with them, of one position: main is `[rows, 1, vocab]` or `[rows, vocab]`.
        temperature: Divides combined logits; 1 is neutral.
        top_k: Tokens to keep; 0 keeps all.
        top_p: Mass to keep; 1 keeps all.
        seed: Any integer, of which 64 bits count.
        step: Number of the draw, of which 32 bits count; or an int32 or int64 tensor of one number on main's device, which a
            CUDA graph reads anew at every replay. As a number it stays in the graph, and every replay draws the same noise.
        greedy: Take the best combined logit; temperature, top-k, top-p, seed and step do not matter.
        rows: Ids of rows, int64 `[rows]` on main's device; by default their numbers in the batch.

    Raises:
        ValueError: Main has several positions, or a setting is outside its range.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    draw = Draw(temperature, top_k, top_p, seed, step, greedy, rows)
    combination = combination.with_positions()
    if combination.main.shape[1] != 1:
        raise ValueError(f"select takes one position of each row, got logits of shape {tuple(combination.main.shape)}.")
    draw.check_tensors(combination.main)
    if is_traced(combination.main):
        return Selection(*operator.select(*flatten_combination(combination), *operator.flatten_draw(draw)))
    return Selection(*run_select(combination, draw))
