"""The sum of a forward's terms: weighted logits, plausibility, restriction and bias."""

from __future__ import annotations

from torch import Tensor

from lvlm_guard_kernels.combination import Combination
from lvlm_guard_kernels.combine import eager
from lvlm_guard_kernels.deprecation import accept_parts
from lvlm_guard_kernels.dispatch import choose_provider


@accept_parts(Combination)
def combine(combination: Combination) -> Tensor:
    """Add up weighted logits, demote implausible tokens and remove those outside the restriction.

    Args:
        combination: Logits and what is done with them. Implausible tokens become `main - DEMOTION`, removed ones `-inf`.

    Returns:
        Dense fp32 logits of main's shape. NaN in main stays NaN; with `beta` it spreads over its row.

    Raises:
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    if choose_provider("combine", combination.main, *combination.sources) == "torch":
        return eager.combine(combination)
    from lvlm_guard_kernels.combine import fused  # noqa: PLC0415 - Triton is loaded where it runs

    return fused.combine(combination)
