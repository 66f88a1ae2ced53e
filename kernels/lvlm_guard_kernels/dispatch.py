"""Which implementation runs: one rule for all kernels."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from torch import Tensor

Provider = Literal["torch", "triton"]

ENVIRONMENT = "LVLM_GUARD_KERNELS"
CHOICES = ("auto", "torch", "triton")

_record: ContextVar[list[str] | None] = ContextVar("lvlm_guard_kernel_paths", default=None)


class KernelsUnavailable(RuntimeError):
    """The implementation named by `LVLM_GUARD_KERNELS` cannot run here."""


def choose_provider(kernel: str, *tensors: Tensor) -> Provider:
    """Choose the implementation of one call: the one `LVLM_GUARD_KERNELS` names, by default Triton on a GPU, else torch.

    Args:
        kernel: Name of the kernel, for `record_paths`.
        tensors: What the kernel will read.

    Raises:
        KernelsUnavailable: The variable has an unknown value, or names Triton where it cannot run.
    """
    choice = os.environ.get(ENVIRONMENT, "auto")
    if choice not in CHOICES:
        raise KernelsUnavailable(f"{ENVIRONMENT}={choice!r} is none of {', '.join(CHOICES)}.")
    provider = _resolve(choice, tensors)
    if (record := _record.get()) is not None:
        record.append(f"{kernel}:{provider}")
    return provider


def _resolve(choice: str, tensors: tuple[Tensor, ...]) -> Provider:
    if choice == "torch":
        return "torch"
    obstacle = find_obstacle(tensors)
    if choice == "triton" and obstacle:
        raise KernelsUnavailable(f"{ENVIRONMENT}=triton, but {obstacle}. Use auto or torch.")
    return "torch" if obstacle or (choice == "auto" and not tensors[0].is_cuda) else "triton"


def find_obstacle(tensors: tuple[Tensor, ...]) -> str | None:
    """Return why Triton cannot run on these tensors, or None if it can."""
    if not _is_installed():
        return "triton is not installed"
    if not is_interpreting() and not all(tensor.is_cuda for tensor in tensors):
        return f"the logits are on {tensors[0].device} and TRITON_INTERPRET is not set"
    return None


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def is_interpreting() -> bool:
    """Return whether Triton runs its kernels in Python, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@contextmanager
def record_paths() -> Iterator[list[str]]:
    """Record `kernel:provider` of every call inside, so that tests can check what ran."""
    record: list[str] = []
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)
