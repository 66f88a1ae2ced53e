"""Which implementation a call takes, and the error when the one that was named cannot run."""

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from lvlm_guard_kernels import Combination, KernelsUnavailable, combine, devices, dispatch, record_paths
from lvlm_guard_kernels.trial import fused as trial

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
    with pytest.raises(KernelsUnavailable, match="the tensors are on cpu and TRITON_INTERPRET is not set"):
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


GPU = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
"""As much of a tensor on a GPU as choosing looks at."""


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU on which Triton runs, as far as anybody asks; its facts can be changed."""
    facts = {"capability": (9, 0), "compiler": "/usr/bin/cc", "problem": None, "capturing": False, "tried": 0}

    def run(_):
        facts["tried"] += 1
        if facts["problem"] is not None:
            raise facts["problem"]

    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.delenv("LVLM_GUARD_KERNELS", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: facts["capability"])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: facts["capturing"])
    monkeypatch.setattr(devices.shutil, "which", lambda _: facts["compiler"])
    monkeypatch.setattr(trial, "run", run)
    memories = devices._find_lack, devices._try, dispatch._warn_of_torch
    for memory in memories:
        memory.cache_clear()
    yield facts
    for memory in memories:
        memory.cache_clear()


def test_on_a_gpu_triton_runs_after_one_trial(gpu):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [dispatch.choose_provider("combine", GPU) for _ in range(3)] == ["triton"] * 3
    assert gpu["tried"] == 1


@pytest.mark.parametrize(
    ("lack", "message"),
    [
        ({"capability": (7, 5)}, r"cuda:0 has compute capability 7\.5, and Triton needs 8\.0"),
        ({"compiler": None}, "there is no C compiler"),
        (
            {"problem": OSError("Python.h: not there\nmore")},
            r"a first kernel failed on cuda:0 with OSError: Python\.h: not there",
        ),
    ],
)
def test_where_triton_cannot_run_on_a_gpu_torch_does_with_one_warning_and_a_name_is_refused(
    gpu, monkeypatch, lack, message
):
    gpu.update(lack)
    with pytest.warns(RuntimeWarning, match=f"auto takes torch on a GPU, .*{message}") as warned:
        assert [dispatch.choose_provider("combine", GPU) for _ in range(3)] == ["torch"] * 3
    assert len(warned) == 1
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "triton")
    with pytest.raises(KernelsUnavailable, match=message):
        dispatch.choose_provider("combine", GPU)
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    assert dispatch.choose_provider("combine", GPU) == "torch"


def test_a_kernel_is_not_tried_while_a_graph_is_captured(gpu):
    gpu["capturing"] = True
    assert dispatch.choose_provider("combine", GPU) == "triton"
    assert gpu["tried"] == 0


def test_the_trial_kernel_stores_its_answer():
    out = torch.zeros(1, dtype=torch.int32)
    trial.write_answer[1,](out)
    assert out.item() == trial.ANSWER
