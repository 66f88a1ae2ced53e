"""Which dtype a training computes its forwards and backwards in: bfloat16 only where the machine is fast in it."""

from __future__ import annotations

import time

import torch

from lvlm_guard.errors import InputError

DTYPES = ("bfloat16", "float32")
_SIDE = 192
"""Of the matrices that are multiplied to find out: 14 million operations, a tenth of a second at worst."""
_SLOWER = 1.5
"""How much longer bfloat16 may take: it also halves what is read from memory, which a small product does not show."""


def check_dtype(name: str | None) -> None:
    """Refuse any other name than those of `DTYPES`; None stands for the faster one.

    Raises:
        InputError: It is another.
    """
    if name is not None and name not in DTYPES:
        raise InputError(f"dtype must be {' or '.join(DTYPES)}, got {name!r}.")


def faster_dtype(device: str = "cpu") -> str:
    """Return "bfloat16" where it is about as fast as float32 or faster, else "float32".

    A CPU without instructions for bfloat16 multiplies in it a hundred times slower than in float32. Found by multiplying,
    since no name of a CPU says it.
    """
    if device.startswith("cuda"):
        return "bfloat16"
    return "bfloat16" if _seconds(torch.bfloat16) <= _SLOWER * _seconds(torch.float32) else "float32"


def _seconds(dtype: torch.dtype) -> float:
    factor = torch.ones(_SIDE, _SIDE, dtype=dtype)
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        factor @ factor
        taken.append(time.perf_counter() - started)
    return min(taken)
