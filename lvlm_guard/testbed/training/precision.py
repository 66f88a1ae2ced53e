"""Which dtype a training computes its forwards and backwards in: bfloat16 only where the machine is fast in it."""

from __future__ import annotations

import torch

from lvlm_guard.dtype_speed import times_slower
from lvlm_guard.errors import InputError

DTYPES = ("bfloat16", "float32")
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
    """Return "bfloat16" on a GPU and on a CPU that is about as fast in it as in float32, or faster; else "float32"."""
    fast = device.startswith("cuda") or times_slower(torch.bfloat16) <= _SLOWER
    return "bfloat16" if fast else "float32"
