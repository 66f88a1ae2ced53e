"""How fast this CPU is in a dtype of half the width, found by multiplying: no name of a CPU says it."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SIDE = 192
"""Of the matrices that are multiplied: 14 million operations, a tenth of a second where there are no instructions for the dtype."""
_TRIES = 4


@cache
def times_slower(dtype: torch.dtype) -> float:
    """Return how many times longer a product of matrices takes on this CPU in the dtype than in float32.

    A CPU without instructions for bfloat16 takes a hundred times longer, one that has them less time.
    """
    import torch  # noqa: PLC0415 - slow to import

    return _seconds(dtype) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    import torch  # noqa: PLC0415 - as above

    factor = torch.ones(_SIDE, _SIDE, dtype=dtype)
    durations = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        factor @ factor
        durations.append(time.perf_counter() - started)
    return min(durations)
