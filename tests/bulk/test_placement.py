"""A model that is spread by a device map answers as on one device, and contradictions are refused."""

import importlib.util
import json

import pytest
from command_line import run_refused
from served import draw_picture
from typer.testing import CliRunner

from lvlm_guard import testbed
from lvlm_guard.cli import app


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


@pytest.mark.parametrize(
    ("more", "words"),
    [
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
