"""Kernels with one operator changed fail the tests of their folder: about eight minutes, with the slow tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_mutants import Mutant, draw_mutants

TESTS = {
    "combine": ("test_combine.py", "test_extremes.py"),
    "divergence": ("test_divergence.py", "test_extremes.py"),
    "hidden": ("test_hidden.py",),
    "select": ("test_select.py", "test_extremes.py"),
}
EACH = 2
FAILED = 1
"""What pytest returns where a test failed. A changed loop may never end, and a changed address may crash, which gives a negative number."""
MINUTES = 4
MUTANTS = [one for room in TESTS for one in draw_mutants(room, EACH)]


def run_tests(folder: Path, room: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    files = [str(Path(__file__).with_name(name)) for name in TESTS[room]]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=60 * MINUTES
        )
    except subprocess.TimeoutExpired:
        return FAILED, "timed out"
    return done.returncode, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: f"{one.room}-{one.function}-{one.place}")
def test_a_changed_kernel_fails(mutant: Mutant, tmp_path: Path):
    mutant.write(tmp_path)
    code, output = run_tests(tmp_path, mutant.room)
    assert code == FAILED or code < 0, f"{mutant.says}\n{output}"
