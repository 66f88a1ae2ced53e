"""Triton kernels on the CPU: its interpreter runs them, and what they leave unwritten is NaN."""

import importlib
import os
from contextlib import contextmanager

os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is decorated, so before any of them is imported

import numpy as np
import pytest
import torch
import triton.language as tl
from lvlm_guard_kernels import record_paths
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction

if isinstance(tl.max, JITFunction):  # another test module has imported Triton, for compiling
    for module in (tl.standard, tl.random, tl):
        importlib.reload(module)


@pytest.fixture(scope="session", autouse=True)
def functions_find_the_language_as_the_launch_left_it():
    """Keep the interpreter from swapping all names of the language again at every call of a function inside a kernel.

    The launch has swapped them, and what it does not swap for a function's module is swapped at its first call for good. That work is
    half of the time of a kernel.
    """
    swapping, seen = InterpretedFunction.__call__, set()

    def call(function, *args, **kwargs):
        if function.fn.__module__ in seen:
            return function.rewrite()(*args, **kwargs)
        seen.add(function.fn.__module__)
        return swapping(function, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", call)
        yield


@contextmanager
def all_triton():
    """Fail unless kernels run inside, and every one of them in Triton."""
    with record_paths() as ran:
        yield ran
    assert ran, "no kernel ran"
    assert all(path.endswith(":triton") for path in ran), f"not every kernel ran in Triton: {ran}"


@contextmanager
def poisoned():
    """New tensors hold NaN (integers their largest value), so an entry that nothing writes shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture
def on_triton(monkeypatch):
    """Run the test's kernels in Triton, in poisoned memory, and fail if one ran elsewhere.

    The interpreter computes with NumPy, whose warnings about infinities and NaN a GPU does not know.
    """
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "triton")
    with all_triton() as ran, poisoned(), np.errstate(all="ignore"):
        yield ran


@pytest.fixture(name="all_triton")
def all_triton_():
    """The check behind `on_triton`, for tests of itself."""
    return all_triton
