"""The sum of a forward's terms: weighted logits, plausibility, restriction and bias."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lvlm_guard_kernels.combine import eager
from lvlm_guard_kernels.dispatch import provider


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
    """Add up weighted logits, demote the implausible, remove what is not kept.

    Args:
        main: Raw logits `[rows, positions, vocab]` of any float dtype and strides.
        sources: Further logits of main's shape; read only where main survives.
        weights: One per source: a number, or a tensor `[rows, positions]` on main's device.
        main_weight: Weight of main itself; 1 is neutral.
        beta: Tokens under `beta` times main's best probability become `main - 1e4`; 0 is neutral.
        bias: Broadcastable to main; added to survivors.
        keep: Bool, broadcastable to main; tokens outside become `-inf`, and plausibility is measured inside.

    Returns:
        Dense fp32 logits of main's shape. NaN in main stays NaN; with `beta` it spreads over its row.

    Raises:
        KernelsUnavailable: `LVLM_GUARD_KERNELS` asks for what cannot run here.
    """
    if provider("combine", main, *sources) == "torch":
        run = eager.combine
    else:
        from lvlm_guard_kernels.combine import fused  # noqa: PLC0415 - Triton is loaded where it runs

        run = fused.combine
    return run(main, sources, weights, main_weight=main_weight, beta=beta, bias=bias, keep=keep)
