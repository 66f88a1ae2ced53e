"""`select` in the implementation of a call."""

from __future__ import annotations

from torch import Tensor

from lvlm_guard_kernels.combination import Combination
from lvlm_guard_kernels.dispatch import choose_provider
from lvlm_guard_kernels.select import eager
from lvlm_guard_kernels.select.draw import Draw


def run_select(combination: Combination, draw: Draw) -> tuple[Tensor, Tensor]:
    """Run `lvlm_guard_kernels.select` on main `[rows, 1, vocab]`: ids and broken rows."""
    if choose_provider("select", combination.main) == "torch":
        return eager.select(combination, draw)
    from lvlm_guard_kernels.select import fused  # noqa: PLC0415 - Triton is loaded where it runs

    return fused.select(combination, draw)
