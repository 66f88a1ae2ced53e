"""Processes that share a model answer as one process does, and what was not compared is refused."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from command_line import run_refused
from served import draw_picture
from typer.testing import CliRunner

from lvlm_guard import testbed
from lvlm_guard.cli import app

SECONDS = 800


@pytest.fixture
def options(tmp_path):
    """A folder of its own for the bundled model, which by name is loaded whole, and three units, one of them unreadable."""
    (tmp_path / "model").symlink_to(testbed.model.WEIGHTS)
    for index in range(2):
        draw_picture(index).save(tmp_path / f"{index}.png")
    lines = [
        {"image": f"{name}.png", "questions": ["what is in the picture ?", "is there a boat ?"]}
        for name in (0, "no", 1)
    ]
    (tmp_path / "input.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return [
        str(tmp_path / "input.jsonl"),
        "--model",
        str(tmp_path / "model"),
        "--max-new-tokens",
        "6",
        "--stack",
        "vcd",
    ]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
def test_two_processes_answer_as_one(options, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = CliRunner().invoke(app, ["generate-batch", *options, "--out", str(one)])
    assert alone.exit_code == 1, alone.output
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--no-python"]
    program = [sys.executable, "-W", "ignore", "-c", "from lvlm_guard.cli import main; main()"]
    run_group([sys.executable, *launcher, *program, "generate-batch", *options, "--out", str(two), "--tp", "2"])
    for name in ("answers.jsonl", "rejected.jsonl"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert (two / "answers.jsonl").read_bytes().count(b"\n") == 2


def run_group(command):
    """Run a command whose own processes end with it, also where it takes too long."""
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    try:
        process.wait(SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tp", "2"], "torchrun --nproc-per-node 2"),
        (["--tp", "2", "--stack", "pai"], "pai uses attention"),
        (["--tp", "2", "--workers", "2"], "--workers"),
        (["--device-map", "auto", "--device", "cpu"], "Leave out one"),
        (["--device-map", "auto", "--model", "testbed"], "bundled model"),
        (["--device-map", "auto", "--workers", "2"], "one worker"),
        (["--quantize", "8bit"], "bitsandbytes"),
    ],
)
def test_what_is_refused(options, tmp_path, monkeypatch, capsys, more, words):
    replaced = {more[index] for index in range(0, len(more), 2)}
    kept = [options[0]]
    for name, value in zip(options[1::2], options[2::2], strict=True):
        kept += [] if name in replaced else [name, value]
    if words == "bitsandbytes" and importlib.util.find_spec(words):
        pytest.skip("bitsandbytes is installed")
    assert words in run_refused(monkeypatch, capsys, "generate-batch", *kept, "--out", tmp_path / "out", *more)


def test_a_device_map_answers_as_one_device(options, tmp_path):
    for name, more in (("one", ["--device", "cpu"]), ("map", ["--device-map", "auto"])):
        result = CliRunner().invoke(app, ["generate-batch", *options, "--out", str(tmp_path / name), *more])
        assert result.exit_code == 1, result.output
    assert (tmp_path / "one" / "answers.jsonl").read_bytes() == (tmp_path / "map" / "answers.jsonl").read_bytes()
