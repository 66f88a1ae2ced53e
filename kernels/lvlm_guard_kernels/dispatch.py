"""Which implementation runs: one rule for all kernels."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # torch has no public name for it

from lvlm_guard_kernels.devices import find_device_obstacle

Provider = Literal["torch", "triton"]

ENVIRONMENT = "LVLM_GUARD_KERNELS"
AUTO = "auto"
CHOICES = (AUTO, "torch", "triton")


class Environment(NamedTuple):
    """What environment variables say about the implementation.

    Args:
        choice: Value of `LVLM_GUARD_KERNELS`.
        interprets: Whether Triton runs its kernels in Python, on the CPU.
    """

    choice: str
    interprets: bool


_settled: ContextVar[Environment | None] = ContextVar("lvlm_guard_kernel_environment", default=None)
_record: ContextVar[list[str] | None] = ContextVar("lvlm_guard_kernel_paths", default=None)


class KernelsUnavailable(RuntimeError):
    """The implementation named by `LVLM_GUARD_KERNELS` cannot run here, or none can: under a transform of `torch.func`."""


def choose_provider(kernel: str, *tensors: Tensor, obstacle: str | None = None) -> Provider:
    """Choose the implementation of one call: the one `LVLM_GUARD_KERNELS` names, by default Triton on a GPU, else torch.

    Where Triton is installed and cannot run on a GPU, the default is torch and a `RuntimeWarning` says why, once.

    Args:
        kernel: Name of the kernel, for `record_paths`.
        tensors: What the kernel will read, all of it on one device.
        obstacle: What keeps Triton from running this call anywhere, or None.

    Raises:
        KernelsUnavailable: The variable has an unknown value, or names Triton where it cannot run.
    """
    provider = find_provider(*tensors, obstacle=obstacle)
    if (record := _record.get()) is not None:
        record.append(f"{kernel}:{provider}")
    return provider


def find_provider(*tensors: Tensor, obstacle: str | None = None) -> Provider:
    """Return the implementation that `choose_provider` would choose, without a record of it; the same errors."""
    choice, interprets = _settled.get() or _read_environment()
    if choice not in CHOICES:
        raise KernelsUnavailable(f"{ENVIRONMENT}={choice!r} is none of {', '.join(CHOICES)}.")
    if choice == "torch" or (choice == AUTO and not (_is_on_gpu(tensors[0]) and _is_installed())):
        return "torch"
    obstacle = find_obstacle(tensors, interprets=interprets) or obstacle
    if obstacle is None:
        return "triton"
    if choice == AUTO:
        _warn_of_torch(obstacle)
        return "torch"
    raise KernelsUnavailable(f"{ENVIRONMENT}=triton, but {obstacle}. Use auto or torch.")


@functools.cache
def _warn_of_torch(obstacle: str) -> None:
    """Warn once of what makes `auto` take torch on a GPU."""
    message = f"{ENVIRONMENT}=auto takes torch on a GPU, where Triton is faster: {obstacle}. To take torch without this warning, "
    warnings.warn(f"{message}set {ENVIRONMENT}=torch.", RuntimeWarning, stacklevel=5)


def find_obstacle(tensors: tuple[Tensor, ...], *, interprets: bool) -> str | None:
    """Return why Triton cannot run on these tensors, or None if it can."""
    if not _is_installed():
        return "triton is not installed"
    if interprets:
        return None
    strays = [tensor for tensor in tensors if not tensor.is_cuda]
    if strays:
        return f"the tensors are on {strays[0].device} and TRITON_INTERPRET is not set"
    return find_device_obstacle(tensors[0].device)


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def refuse_transforms(kernel: str, *tensors: Tensor) -> None:
    """Refuse tensors that stand for others under `torch.func`, which a kernel cannot read.

    Raises:
        KernelsUnavailable: They do.
    """
    if not torch.compiler.is_compiling() and any(map(is_functorch_wrapped_tensor, tensors)):
        raise KernelsUnavailable(
            f"{kernel} does not run under transforms of torch.func such as vmap and grad. Call it outside, on all rows at once."
        )


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _read_environment() -> Environment:
    return Environment(os.environ.get(ENVIRONMENT, AUTO), os.environ.get("TRITON_INTERPRET", "0") == "1")


@contextmanager
def settle_environment() -> Iterator[None]:
    """Read the environment now, and not again for any call inside; elsewhere it is read at every call."""
    token = _settled.set(_read_environment())
    try:
        yield
    finally:
        _settled.reset(token)


@contextmanager
def record_paths() -> Iterator[list[str]]:
    """Record `kernel:provider` of every call inside, so that tests can check what ran."""
    record: list[str] = []
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)
