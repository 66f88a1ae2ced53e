"""Launching a kernel: pointers and strides of its arguments, width and number of its programs, and what it compiled to."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
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
"""From this many rows per multiprocessor, a program takes a whole row and reads it twice."""
PROCESSORS = 132
MOST_REMEMBERED = 512
"""Launches whose binaries are remembered; then all are forgotten, and found again where Triton keeps them."""
ALIGNMENT = 16
SHORT = range(-(2**31), 2**31)

_binaries: dict[Any, tuple[Any, tuple[Any, ...]]] = {}


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
    if not values.is_cuda or values.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(values.device)


def run(
    kernel: Any, grid: Sequence[int], arguments: Sequence[Any], *, varying: Sequence[int] = (), **constants: Any
) -> None:
    """Launch a kernel, the second time on the binary of the first: Triton's own search for it takes longer than the launch.

    Args:
        kernel: A kernel whose parameters are `arguments`, then `varying`, then constants.
        grid: Number of programs, in one or two dimensions.
        arguments: Tensors and numbers. Whole numbers are told apart by value, since Triton compiles for some of them.
        varying: Whole numbers that change from call to call, for which the kernel is not specialised.
        constants: The other parameters and Triton's options by name.
    """
    key = *_specialise(kernel, arguments), *map(SHORT.__contains__, varying), *constants.values()
    remembered = _binaries.get(key)
    if remembered is not None:
        binary, tail = remembered
        binary[(*grid, 1, 1)[:3]](*arguments, *varying, *tail)
        return
    binary = kernel[tuple(grid)](*arguments, *varying, **constants)
    if binary is None or torch.version.hip is not None or not takes_constants():
        return  # the interpreter has none; AMD's depend on the size of memory too
    if len(_binaries) >= MOST_REMEMBERED:
        forget()
    names = kernel.arg_names[len(arguments) + len(varying) :]
    _binaries[key] = binary, tuple(constants[name] for name in names)


@functools.cache
def takes_constants() -> bool:
    """Return whether a binary is launched with the constants of its kernel too, as it is from Triton 3.3 on."""
    import triton  # noqa: PLC0415 - not everywhere, and slow to import

    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 3)


def forget() -> None:
    """Forget the binaries of earlier launches."""
    _binaries.clear()


def _specialise(kernel: Any, arguments: Sequence[Any]) -> list[Any]:
    """Return all that a binary may depend on: of tensors, all on one device, dtype and alignment; of floats nothing."""
    first = arguments[0]
    key = [kernel, first.device, first.dtype, first.data_ptr() % ALIGNMENT == 0]
    for argument in arguments:
        if argument.__class__ is int:
            key.append(argument)
        elif argument is first:  # which stands in for what there is not
            key.append(None)
        elif isinstance(argument, Tensor):
            key += argument.dtype, argument.data_ptr() % ALIGNMENT == 0
        else:
            key.append(float if argument.__class__ is float else argument)
    return key


def count_parts(length: int, width: int) -> int:
    """Return how many parts of a width cover a length."""
    return -(-length // width)


def round_up(number: int) -> int:
    """Return the least power of two that is not less than a number above 0."""
    return 1 << (number - 1).bit_length()
