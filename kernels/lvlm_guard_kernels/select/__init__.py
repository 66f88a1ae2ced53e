"""From a forward's terms to a token, for loops that own sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lvlm_guard_kernels.dispatch import provider
from lvlm_guard_kernels.select import eager
from lvlm_guard_kernels.select.draw import Draw

_AS_COLUMNS = 2


@dataclass(frozen=True)
class Selected:
    """Tokens of one step.

    Args:
        ids: int64 `[rows]`; -1 where there was nothing to choose from.
        broken: Bool `[rows]`: a combined logit is NaN, or every token is removed.
    """

    ids: Tensor
    broken: Tensor


def select(
    main: Tensor,
    sources: Sequence[Tensor] = (),
    weights: Sequence[float | Tensor] = (),
    *,
    main_weight: float | Tensor = 1.0,
    beta: float = 0.0,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    step: int = 0,
    greedy: bool = False,
    rows: Tensor | None = None,
) -> Selected:
    """Draw a token for each row from what `combine` makes of the same terms; made for few survivors.

    Implausible tokens are drawn only where every plausible one is at `-inf`. Temperature, top-k and top-p act in this
    order and as in transformers: top-k keeps all that equal its last token, top-p removes from the least token up what
    has `1 - top_p` of the mass left by top-k, of equal tokens the highest ids first. The draw is the argmax of
    log-probability and Gumbel noise; the noise is a function of seed, step, row id and token id alone, so a draw
    depends on no other row. Of equal scores the lowest id wins.

    Args:
        main: Raw logits `[rows, 1, vocab]` or `[rows, vocab]` of any float dtype and strides.
        sources: Further logits of main's shape; read only where main survives.
        weights: One per source: a number, or a tensor `[rows]` or `[rows, 1]` on main's device.
        main_weight: Weight of main itself; 1 is neutral.
        beta: Tokens under `beta` times main's best probability are implausible; 0 is neutral.
        bias: Broadcastable to main; added to survivors.
        keep: Bool, broadcastable to main; tokens outside are removed, and plausibility is measured inside.
        temperature: Divides combined logits; 1 is neutral.
        top_k: Tokens to keep; 0 keeps all.
        top_p: Mass to keep; 1 keeps all.
        seed: Any integer, 64 bits of it count.
        step: Number of the draw, 32 bits of it count.
        greedy: Take the best combined logit; temperature, top-k, top-p, seed and step do not matter.
        rows: Ids of rows, int64 `[rows]` on main's device; by default their numbers in the batch.

    Raises:
        ValueError: Main has several positions, or a setting is outside its range.
        KernelsUnavailable: `LVLM_GUARD_KERNELS` asks for what cannot run here.
    """
    draw = Draw(temperature, top_k, top_p, seed, step, greedy, rows)
    main, *sources = [_rowwise(one) for one in (main, *sources)]
    if main.shape[1] != 1:
        raise ValueError(f"select takes one position of each row, got logits of shape {tuple(main.shape)}.")
    if provider("select", main, *sources) == "torch":
        run = eager.select
    else:
        from lvlm_guard_kernels.select import fused  # noqa: PLC0415 - Triton is loaded where it runs

        run = fused.select
    own, *weights = [_of_rows(weight, len(main)) for weight in (main_weight, *weights)]
    bias, keep = [one if one is None else _rowwise(one) for one in (bias, keep)]
    return Selected(*run(main, sources, weights, draw, main_weight=own, beta=beta, bias=bias, keep=keep))


def _rowwise(values: Tensor) -> Tensor:
    """`[rows, vocab]` as `[rows, 1, vocab]`; other shapes as they are."""
    return values.unsqueeze(1) if values.dim() == _AS_COLUMNS else values


def _of_rows(weight: float | Tensor, rows: int) -> float | Tensor:
    """A tensor `[rows]`, `[rows, 1]` or of one number as `[rows, 1]`."""
    return weight.reshape(-1, 1).expand(rows, 1) if isinstance(weight, Tensor) else weight
