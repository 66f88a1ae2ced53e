"""Whether Triton can run on a device: asked once for each, by compiling and launching a kernel of one line."""

from __future__ import annotations

import functools
import os
import shutil

import torch

LEAST_CAPABILITY = 8, 0
"""Triton supports NVIDIA's GPUs from here up, and older ones have no bf16."""
COMPILERS = "cc", "gcc", "clang"


def find_device_obstacle(device: torch.device) -> str | None:
    """Return why Triton cannot run on a GPU, or None if it can.

    The first call for a device compiles and waits; while a CUDA graph is captured nothing may wait, and a kernel is not tried.

    Args:
        device: A device of type `cuda`, with its index.
    """
    obstacle = _find_lack(device)
    if obstacle is not None or torch.cuda.is_current_stream_capturing():
        return obstacle
    return _try(device)


@functools.cache
def _find_lack(device: torch.device) -> str | None:
    """Return what Triton needs and a device or this machine lacks, or None."""
    if torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            return f"{device} has compute capability {_show(capability)}, and Triton needs {_show(LEAST_CAPABILITY)}"
    if not (os.environ.get("CC") or any(map(shutil.which, COMPILERS))):
        return "there is no C compiler, which Triton needs to launch kernels: install gcc or clang, or set CC"
    return None


@functools.cache
def _try(device: torch.device) -> str | None:
    """Return what stops a small kernel from compiling and running, or None."""
    from lvlm_guard_kernels.trial import fused  # noqa: PLC0415 - Triton is loaded where it runs

    try:
        fused.run(device)
    except Exception as problem:  # noqa: BLE001 - a compiler, a header or a driver may be missing: all of them are named
        first = (str(problem).splitlines() or [""])[0]
        return f"a first kernel failed on {device} with {type(problem).__name__}: {first[:200]}"
    return None


def _show(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
