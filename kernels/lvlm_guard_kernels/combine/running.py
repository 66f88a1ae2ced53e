"""`combine` in the implementation of a call."""

from __future__ import annotations

from torch import Tensor

from lvlm_guard_kernels.combination import Combination
from lvlm_guard_kernels.combine import eager
from lvlm_guard_kernels.dispatch import choose_provider


def run_combine(combination: Combination) -> Tensor:
    """Run `lvlm_guard_kernels.combine`."""
    if choose_provider("combine", combination.main) == "torch":
        return eager.combine(combination)
    from lvlm_guard_kernels.combine import fused  # noqa: PLC0415 - Triton is loaded where it runs

    return fused.combine(combination)
