"""What the compiler makes of the kernels for GPUs that are not here: registers, spilling, width of loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from lvlm_guard_kernels import launch

SCRIPT = Path(__file__).with_name("compiled.py")
NVIDIA = ("sm_80", "sm_90", "sm_100")
KERNELS = {
    "find_slice_best", "combine_rows", "measure_slices", "finish_rows", "diverge_slices", "open_rows", "list_survivors",
    "draw_tokens", "turn_states", "project_states", "shift_states",
}  # fmt: skip
OF_PARTIALS = {"finish_rows", "draw_tokens"}
"""Kernels that read what others left, and no logits."""
MOST_REGISTERS = 128
"""Of 65536 per multiprocessor, two programs of eight warps hold all."""


@pytest.fixture(
    scope="module",
    params=[("sm_90", "gfx942"), pytest.param((*NVIDIA, "gfx942"), marks=pytest.mark.slow)],
    ids=["newest of both makers", "all"],
)
def targets(request):
    if launch.takes_constants():
        return request.param
    return tuple(target for target in request.param if target in NVIDIA)  # Triton 3.2 links AMD's by a linker of ROCm


@pytest.fixture(scope="module")
def done(tmp_path_factory, targets):
    dropped = ("TRITON_INTERPRET", "LVLM_GUARD_KERNELS", "TRITON_DEFAULT_FP_FUSION")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, SCRIPT, *targets], capture_output=True, text=True, check=False, env=environment, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture(scope="module")
def rows(done):
    return json.loads(done.stdout)["rows"]


def test_every_kernel_compiles_for_every_target(rows, targets):
    made = [{(row["specimen"], row["kernel"]) for row in rows if row["target"] == target} for target in targets]
    assert all(of_target == made[0] for of_target in made)
    assert {kernel for _, kernel in made[0]} == KERNELS


@pytest.mark.skipif(not launch.takes_constants(), reason=f"Triton {triton.__version__} assigns registers otherwise")
def test_no_kernel_spills_or_takes_more_registers_than_two_programs_share(rows):
    assert max(row["registers"] for row in rows) > 32
    over = [row for row in rows if row["stack"] or row.get("spilt") or row["registers"] > MOST_REGISTERS]
    assert not over


def test_logits_are_read_in_vectors_where_the_vocabulary_is_aligned_and_only_there(rows):
    reading = [row for row in rows if row["target"] in NVIDIA and row["kernel"] not in OF_PARTIALS]
    assert len(reading) > 20
    for row in reading:
        wide = sum(count for width, count in row["loads"].items() if width != "scalar")
        assert bool(wide) == ("32001" not in row["specimen"]), row


def test_a_source_that_is_read_everywhere_is_read_in_vectors_too(rows):
    reading = [row for row in rows if row["specimen"].startswith("sum") and row["target"] in NVIDIA]
    assert reading
    assert not [row for row in reading if "scalar" in row["loads"]]


def test_a_second_launch_hands_a_binary_what_triton_handed_it(done):
    if not launch.takes_constants():
        pytest.skip(f"Triton {triton.__version__} finds the binary of every launch")
    relaunches = json.loads(done.stdout)["relaunches"]
    assert len(relaunches) > 10
    for relaunch in relaunches:
        assert relaunch["first"], relaunch["specimen"]
        assert relaunch["first"] == relaunch["second"], relaunch["specimen"]


def test_a_first_launch_warns_of_nothing(done):
    assert done.stderr == ""
