"""The sum of a forward's terms: weighted logits, plausibility, restriction and bias."""

from __future__ import annotations

from torch import Tensor

from lvlm_guard_kernels.combination import Combination, without_gradient
from lvlm_guard_kernels.combine import operator
from lvlm_guard_kernels.combine.running import run_combine
from lvlm_guard_kernels.deprecation import accept_parts
from lvlm_guard_kernels.operators import flatten_combination, is_traced


@accept_parts(Combination)
@without_gradient
def combine(combination: Combination) -> Tensor:
    """Add up weighted logits, demote implausible tokens and remove those outside the restriction.

    Nothing is differentiated: the result has no gradient, whatever its inputs have.

    Args:
        combination: Logits and what is done with them. Implausible tokens become `main - DEMOTION`, removed ones `-inf`.

    Returns:
        Dense fp32 logits of main's shape. NaN in main stays NaN; with `beta` it spreads over its row.

    Raises:
        KernelsUnavailable: `LVLM_GUARD_KERNELS` names an implementation that cannot run here.
    """
    if is_traced(combination.main):
        combined: Tensor = operator.combine(*flatten_combination(combination))
        return combined
    return run_combine(combination)
