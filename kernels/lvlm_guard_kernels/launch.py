"""Launching a kernel: pointers and strides of its arguments, width and number of its programs."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import torch
from torch import Tensor

View: TypeAlias = tuple[Tensor, int, int]
"""Logits `[rows, positions, vocab]` with the strides of rows and positions."""

WIDTH = 4096
NARROW = 1024
"""Vocabulary entries per program; the narrow one fills the device when rows are few."""
FEW_ROWS = 2
ROWS_PER_PROCESSOR = 2
"""From this many rows per multiprocessor, a program takes a whole row, and reads it a second time from cache."""
PROCESSORS = 132


def view_rows(values: Tensor) -> View:
    """Return a view of logits `[rows, positions, vocab]`; they are copied only where the tokens of a row lie apart."""
    values = values if values.stride(-1) == 1 or values.shape[-1] <= 1 else values.contiguous()
    return values, values.stride(0), values.stride(1)


def choose_width(rows: int) -> int:
    """Return how many vocabulary entries one program takes."""
    return NARROW if rows <= FEW_ROWS else WIDTH


def choose_warps(width: int) -> int:
    """Return the number of warps of a program of a width."""
    return 4 if width <= 2048 else 8  # noqa: PLR2004 - measured choice of registers per thread


def rows_fill_device(rows: int, device: torch.device) -> bool:
    """Return whether there are enough rows to give each to one program."""
    return rows >= ROWS_PER_PROCESSOR * count_processors(device)


@functools.cache
def count_processors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU, or of a common one where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS


def use_device(values: Tensor) -> AbstractContextManager[Any]:
    """Launch on the device of the values, whichever is current."""
    return torch.cuda.device(values.device) if values.is_cuda else contextlib.nullcontext()
