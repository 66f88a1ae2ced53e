"""Logits as rows for a kernel: pointers and strides of views, launch sizes."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

WIDTH = 4096
NARROW = 1024
"""Vocabulary entries per program; the narrow one fills the device when rows are few."""
FEW_ROWS = 2
ROWS_PER_PROCESSOR = 2
"""From so many rows per multiprocessor on, a program takes a whole row, and reads it a second time from cache."""
PROCESSORS = 132


def strided(values: Tensor) -> tuple[Tensor, int, int]:
    """Logits `[rows, positions, vocab]` with the strides of rows and positions; copied only where tokens are apart."""
    values = values if values.stride(-1) == 1 or values.shape[-1] <= 1 else values.contiguous()
    return values, values.stride(0), values.stride(1)


def width(rows: int) -> int:
    """How many vocabulary entries one program takes."""
    return NARROW if rows <= FEW_ROWS else WIDTH


def warps(width: int) -> int:
    """Warps of a program that wide."""
    return 4 if width <= 2048 else 8  # noqa: PLR2004 - measured choice of registers per thread


def whole_rows(rows: int, device: torch.device) -> bool:
    """Whether there are enough rows to give each to one program."""
    return rows >= ROWS_PER_PROCESSOR * processors(device)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; of a common one where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS


def on_device(values: Tensor) -> AbstractContextManager[Any]:
    """Launch on the device of the values, whichever is current."""
    return torch.cuda.device(values.device) if values.is_cuda else contextlib.nullcontext()
