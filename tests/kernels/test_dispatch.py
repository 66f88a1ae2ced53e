"""Which implementation a call takes, and the error when the one that was named cannot run."""

import os
import subprocess
import sys

import pytest
import torch
from lvlm_guard_kernels import Combination, KernelsUnavailable, combine, dispatch, record_paths

NEUTRAL = Combination(torch.zeros(1, 1, 5))


def test_on_the_cpu_torch_runs_unless_triton_is_asked_for(monkeypatch):
    monkeypatch.delenv("LVLM_GUARD_KERNELS", raising=False)
    with record_paths() as ran:
        combine(NEUTRAL)
        for choice in ("auto", "torch", "triton"):
            monkeypatch.setenv("LVLM_GUARD_KERNELS", choice)
            combine(NEUTRAL)
    assert ran == ["combine:torch", "combine:torch", "combine:torch", "combine:triton"]


def test_outside_of_a_recording_nothing_is_kept():
    with record_paths() as ran:
        pass
    combine(NEUTRAL)
    assert ran == []


def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "cuda")
    with pytest.raises(KernelsUnavailable, match="'cuda' is none of auto, torch, triton"):
        combine(NEUTRAL)


def test_triton_is_refused_on_the_cpu_where_nothing_interprets_it(monkeypatch):
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(KernelsUnavailable, match="the logits are on cpu and TRITON_INTERPRET is not set"):
        combine(NEUTRAL)


def test_triton_is_refused_where_it_is_not_installed(monkeypatch):
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "_is_installed", lambda: False)
    with pytest.raises(KernelsUnavailable, match="triton is not installed"):
        combine(NEUTRAL)


def test_a_call_that_took_another_way_is_caught(all_triton, monkeypatch):
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "auto")
    assert os.environ["TRITON_INTERPRET"] == "1"
    with pytest.raises(AssertionError, match="not every kernel ran in Triton"), all_triton():
        combine(NEUTRAL)
    with pytest.raises(AssertionError, match="no kernel ran"), all_triton():
        pass


def test_on_triton_new_tensors_are_poisoned(on_triton):
    combine(NEUTRAL)
    assert torch.empty(7).isnan().all()
    assert (torch.empty(7, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


LAZY = """
import sys, torch, lvlm_guard_kernels
before = "triton" in sys.modules
lvlm_guard_kernels.combine(lvlm_guard_kernels.Combination(torch.zeros(1, 1, 5), [torch.ones(1, 1, 5)], [1.0], beta=0.1))
print(before, "triton" in sys.modules)
"""


def test_triton_is_not_imported_where_torch_runs():
    environment = {name: value for name, value in os.environ.items() if name != "LVLM_GUARD_KERNELS"}
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["False", "False"], done.stderr
