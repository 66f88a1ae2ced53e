"""A launch goes to the binary of an earlier one only where that takes what a kernel takes."""

from __future__ import annotations

import pytest
import torch
from lvlm_guard_kernels import launch


class Binary:
    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        return lambda *values: self.launches.append((grid, values))


class Kernel:
    arg_names = ("values", "count", "position", "WIDTH")

    def __init__(self):
        self.binary, self.searches = Binary(), 0

    def __getitem__(self, grid):
        def search(*values, **constants):
            self.searches += 1
            return self.binary

        return search


@pytest.fixture(autouse=True)
def _forgetful():
    launch.forget()
    yield
    launch.forget()


@pytest.mark.parametrize(("takes_constants", "searches"), [(True, 1), (False, 3)])
def test_a_binary_that_takes_no_constants_is_found_by_triton_each_time(monkeypatch, takes_constants, searches):
    monkeypatch.setattr(launch, "takes_constants", lambda: takes_constants)
    kernel, values = Kernel(), torch.ones(4)
    for position in range(3):
        launch.run(kernel, (2,), (values, 5), varying=(position,), WIDTH=64)
    assert kernel.searches == searches
    expected = [((2, 1, 1), (values, 5, position, 64)) for position in (1, 2)]
    assert kernel.binary.launches == (expected if takes_constants else [])


@pytest.mark.parametrize(
    ("version", "takes"), [("3.2.0", False), ("3.3.0", True), ("3.10.1", True), ("4.0.0+git1", True)]
)
def test_constants_are_taken_from_triton_3_3_on(monkeypatch, version, takes):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    launch.takes_constants.cache_clear()
    assert launch.takes_constants() is takes
    launch.takes_constants.cache_clear()
