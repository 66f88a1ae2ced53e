"""Processes that share a model answer as one process does, and what was not compared is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from command_line import run_refused
from served import draw_picture
from typer.testing import CliRunner

from lvlm_guard import testbed
from lvlm_guard.cli import app

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")


@pytest.fixture
def options(tmp_path):
    """A folder of its own for the bundled model, which by name is loaded whole, and three units, one of them unreadable."""
    (tmp_path / "model").symlink_to(testbed.model.WEIGHTS)
    for index in range(2):
        draw_picture(index).save(tmp_path / f"{index}.png")
    questions = ["what is in the picture ?", "is there a boat ?"]
    lines = [json.dumps({"image": f"{name}.png", "questions": questions}) for name in (0, "no", 1)]
    (tmp_path / "input.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [str(tmp_path / "input.jsonl"), "--model", str(tmp_path / "model"), "--max-new-tokens", "6"]


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["plain", "vcd"])
def test_two_processes_answer_as_one(options, tmp_path, stack):
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--stack", stack]
    alone = CliRunner().invoke(app, ["generate-batch", *options, *more, "--dtype", "float32", "--out", str(one)])
    assert alone.exit_code == 1, alone.output
    command = [sys.executable, "-W", "ignore", "-c", "from lvlm_guard.cli import main; main()", "generate-batch"]
    arguments = [*command, *options, *more, "--dtype", "float32", "--out", str(two), "--tp", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    for name in ("answers.jsonl", "rejected.jsonl"):
        assert (two / name).read_bytes() == (one / name).read_bytes(), done.stderr
    assert (two / "answers.jsonl").read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    ("more", "environment", "words"),
    [
        (["--tp", "2"], {}, "torchrun --standalone --nproc-per-node 2"),
        (["--tp", "2"], {"WORLD_SIZE": "3", "RANK": "0"}, "this is one of 3"),
        (["--tp", "2"], {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "0"}, "meet at port 0"),
        (["--tp", "2", "--stack", "pai"], {}, "pai uses attention"),
        (["--tp", "2", "--stack", "vsv"], {}, "vsv uses hidden"),
        (["--tp", "2", "--workers", "2"], {}, "neither --workers nor --ray"),
        (["--tp", "2", "--device-map", "auto"], {}, "neither a device map nor quantisation"),
        (["--tp", "2", "--device", "cpu"], {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "29500"}, "Leave out one"),
    ],
)
def test_what_is_refused(options, tmp_path, monkeypatch, capsys, more, environment, words):
    for name in ("WORLD_SIZE", "RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert words in run_refused(monkeypatch, capsys, "generate-batch", *options, "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()
