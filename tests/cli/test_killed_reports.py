"""Reports of answers whose process was ended by a signal: the next one goes on, and ends as one that was never stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import killed_reports
import pytest
from PIL import Image

COUNT = 6


def write(pictures, out, place="nowhere", name="SIGKILL"):
    script = Path(killed_reports.__file__)
    command = [sys.executable, str(script), str(pictures), str(out), place, name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """What a run leaves that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert write(pictures, out).stdout == "0\n"
    return read(out)


@pytest.mark.parametrize(("place", "name"), [("diagnosing", "SIGINT"), ("figures", "SIGKILL")])
def test_a_killed_run_goes_on_and_leaves_what_a_whole_one_leaves(pictures, whole, tmp_path, place, name):
    out = tmp_path / "out"
    killed = write(pictures, out, place, name)
    assert killed.returncode == -signal.Signals[name], killed.stderr
    left = read(out)
    assert "index.html" not in left
    assert f"answer-{killed_reports.FATAL - 1}.json" in left
    assert f"answer-{killed_reports.FATAL}.json" not in left
    assert (f"answer-{killed_reports.FATAL}.html" in left) == (place == "figures")
    assert write(pictures, out).stdout == f"{killed_reports.FATAL - 1}\n"
    assert read(out) == whole
    assert len(whole) == 3 * COUNT + 1
