"""The wheels of the project and of the outside example, built once and offline."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
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


@pytest.fixture
def environment(tmp_path):
    """A function from wheels to a new environment that holds them and nothing of the checkout: (home, python)."""

    def make(*wheels):
        home = tmp_path / "environment"
        venv.EnvBuilder(with_pip=False, symlinks=True).create(home)
        python = home / "bin" / "python"
        run(*PIP, "--python", python, "install", "--no-deps", "--no-index", "--no-compile", *wheels)
        purelib = run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        lend_dependencies(Path(purelib))
        return home, python

    return make


def lend_dependencies(site_packages):
    """Put this environment's third-party packages behind the new one's; the `.pth` files among them stay asleep."""
    lent = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    (site_packages / "lent.pth").write_text("\n".join(lent) + "\n", encoding="utf-8")


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
