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

_paths: ContextVar[list[str] | None] = ContextVar("lvlm_guard_kernel_paths", default=None)


class KernelsUnavailable(RuntimeError):
    """The implementation asked for by name cannot run here."""


def provider(kernel: str, *tensors: Tensor) -> Provider:
    """Choose the implementation of one call: what `LVLM_GUARD_KERNELS` names, by default Triton on a GPU and torch elsewhere.

    Args:
        kernel: Name of the kernel, for `paths`.
        tensors: What it will read.

    Raises:
        KernelsUnavailable: The variable names nothing known, or Triton where it cannot run.
    """
    asked = os.environ.get(ENVIRONMENT, "auto")
    if asked not in CHOICES:
        raise KernelsUnavailable(f"{ENVIRONMENT}={asked!r} is none of {', '.join(CHOICES)}.")
    chosen = _chosen(asked, tensors)
    if (seen := _paths.get()) is not None:
        seen.append(f"{kernel}:{chosen}")
    return chosen


def _chosen(asked: str, tensors: tuple[Tensor, ...]) -> Provider:
    if asked == "torch":
        return "torch"
    reason = obstacle(tensors)
    if asked == "triton" and reason:
        raise KernelsUnavailable(f"{ENVIRONMENT}=triton, but {reason}. Use auto or torch.")
    return "torch" if reason or (asked == "auto" and not tensors[0].is_cuda) else "triton"


def obstacle(tensors: tuple[Tensor, ...]) -> str | None:
    """Why Triton cannot run on these tensors, or None."""
    if not _installed():
        return "triton is not installed"
    if not interpreting() and not all(one.is_cuda for one in tensors):
        return f"the logits are on {tensors[0].device} and TRITON_INTERPRET is not set"
    return None


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@contextmanager
def paths() -> Iterator[list[str]]:
    """Record `kernel:provider` of every call inside, so that tests can tell what ran."""
    seen: list[str] = []
    token = _paths.set(seen)
    try:
        yield seen
    finally:
        _paths.reset(token)
