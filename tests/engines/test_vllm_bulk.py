"""`generate-batch --engine vllm`: every line is answered as by `Guard`, many at once, and a bad one costs only itself."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from served import draw_picture
from typer.testing import CliRunner

from lvlm_guard.cli import app

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"),
]
if find_spec("vllm") is not None:
    from vllm_engine import SETTINGS, load_guard

OPTIONS = {
    "dtype": "float32", "enforce_eager": True, "max_model_len": 120, "block_size": 32, "max_num_batched_tokens": 128,
}  # fmt: skip
LONG = "is there a boat ? " * 40
QUESTIONS = ["what is in the picture ?", "is there a boat ?", "describe this image ."]
BAD = {4, 7}


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """The folder of an answered file: nine units, of which one has no picture and one a question that is too long."""
    folder = tmp_path_factory.mktemp("bulk")
    lines = []
    for index in range(9):
        draw_picture(index).save(folder / f"{index}.png")
        image = "missing.png" if index == 4 else f"{index}.png"
        questions = [*QUESTIONS[: 1 + index % 3], *([LONG] if index == 7 else [])]
        lines.append(json.dumps({"id": f"u{index}", "image": image, "questions": questions}))
    (folder / "input.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        arguments = ["generate-batch", str(folder / "input.jsonl"), "--model", "testbed", "--out", str(folder / "out")]
        options = [
            "--stack",
            "vcd",
            "--engine",
            "vllm",
            "--engine-options",
            json.dumps(OPTIONS),
            "--max-new-tokens",
            "12",
        ]
        result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 1, result.output
    return folder / "out"


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def expect(index, stack="vcd"):
    conversations = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": draw_picture(index)}, {"type": "text", "text": question}],
            }
        ]
        for question in QUESTIONS[: 1 + index % 3]
    ]
    return load_guard().chat(conversations, stack=stack, max_new_tokens=12, do_sample=False)


def test_answers_are_the_guards_in_the_order_of_the_file(answered):
    entries = read(answered / "answers.jsonl")
    kept = [index for index in range(9) if index not in BAD]
    assert [entry["id"] for entry in entries] == [f"u{index}" for index in kept]
    found = [[pair["answer"] for pair in entry["answers"]] for entry in entries]
    assert found == [expect(index) for index in kept]
    assert found != [expect(index, None) for index in kept]


def test_a_line_that_cannot_be_answered_costs_only_itself(answered):
    rejected = read(answered / "rejected.jsonl")
    assert [entry["line"] for entry in rejected] == [5, 8]
    assert "missing.png" in rejected[0]["reason"]


def test_the_engine_is_part_of_the_job(answered):
    manifest = json.loads((answered / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["engine"], manifest["engine_options"]) == ("vllm", OPTIONS)
