"""Every public kernel with a call of it, for what must hold of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import lvlm_guard_kernels
import torch
from lvlm_guard_kernels import Combination
from torch import Tensor

NO_KERNELS = {
    "DEMOTION", "Combination", "KernelsUnavailable", "RowStatistics", "Selection", "record_paths", "settle_environment",
}  # fmt: skip
"""Public names that compute nothing."""


@dataclass(frozen=True)
class Specimen:
    """A kernel and how it is called.

    Args:
        call: Takes the tensors.
        shapes: Of the tensors that it takes.
    """

    call: Callable[..., Any]
    shapes: Sequence[tuple[int, ...]]

    def draw(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return random tensors that the call takes."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator).mul(3).to(dtype) for shape in self.shapes]


ROWS, LAYERS, STATES = (2, 1, 40), (3, 2, 1, 40), (2, 3, 16)
SPECIMENS = {
    "combine": Specimen(
        lambda main, branch, weight: lvlm_guard_kernels.combine(Combination(main, [branch], [weight], 2.0, 0.1)),
        (ROWS, ROWS, (2, 1)),
    ),
    "select": Specimen(
        lambda main, branch: lvlm_guard_kernels.select(
            Combination(main, [branch], [-1.0], 2.0, 0.1), temperature=0.7, top_k=9, top_p=0.9, seed=3
        ),
        (ROWS, ROWS),
    ),
    "statistics": Specimen(lvlm_guard_kernels.statistics, (ROWS,)),
    "StatisticsOnDemand": Specimen(lambda main: lvlm_guard_kernels.StatisticsOnDemand(main)["entropy"], (ROWS,)),
    "log_sum_exp": Specimen(lvlm_guard_kernels.log_sum_exp, (ROWS,)),
    "entropy": Specimen(lvlm_guard_kernels.entropy, (ROWS,)),
    "max_probability": Specimen(lvlm_guard_kernels.max_probability, (ROWS,)),
    "kl": Specimen(lvlm_guard_kernels.kl, (ROWS, ROWS)),
    "jensen_shannon": Specimen(lvlm_guard_kernels.jensen_shannon, (ROWS, ROWS)),
    "layer_divergence": Specimen(
        lambda main, layers: lvlm_guard_kernels.layer_divergence(main, layers, "released"), (ROWS, LAYERS)
    ),
    "turn": Specimen(lambda states, unit: lvlm_guard_kernels.turn(states, unit, 0.3, opposed=True), (STATES, (16,))),
    "project": Specimen(lambda states, units: lvlm_guard_kernels.project(states, units, 0.3), (STATES, (2, 16))),
    "shift": Specimen(lambda states, vector: lvlm_guard_kernels.shift(states, vector, 0.3), (STATES, (16,))),
}
KERNELS = sorted(set(lvlm_guard_kernels.__all__) - NO_KERNELS)
"""What must have a specimen: a test looks one up by each of these names."""


def list_results(result: Any) -> list[Tensor]:
    """Return the tensors of what a kernel returned."""
    if is_dataclass(result):
        return [getattr(result, field.name) for field in fields(result)]
    return [result]
