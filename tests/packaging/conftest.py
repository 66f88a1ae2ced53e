"""The wheels of the project and of the outside example, built once and offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = CHECKOUT / "tests" / "third_party" / "lvlm-guard-example"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="session")
def checkout():
    return CHECKOUT


@pytest.fixture(scope="session")
def example():
    return EXAMPLE


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Wheels by distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    run(
        *PIP,
        "wheel",
        "--no-cache-dir",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        folder,
        CHECKOUT,
        EXAMPLE,
    )
    return {wheel.name.split("-")[0]: wheel for wheel in folder.glob("*.whl")}


@pytest.fixture(scope="session")
def quietly():
    return run


def run(*command, cwd=None):
    """Run a command that knows nothing of this test run, and return what it printed."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "PIP_"))}
    outside["OMP_NUM_THREADS"] = "1"  # tiny models lose by more
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=outside, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
