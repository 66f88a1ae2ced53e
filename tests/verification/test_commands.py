"""`lvlm-guard verify` and `doctor` as a user meets them, mistakes included."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers
from command_line import run_command, run_refused
from saved_models import save_model
from typer.testing import CliRunner

from lvlm_guard.cli import app
from lvlm_guard.host.stack import Stack
from lvlm_guard.verification import verifying
from lvlm_guard.verification.rows import read_row


@pytest.fixture(autouse=True)
def few_timings(monkeypatch):
    monkeypatch.setattr(verifying, "ROUNDS", 1)
    monkeypatch.setattr(verifying, "TIMED_TOKENS", 3)


@pytest.fixture(scope="module")
def text_only(tmp_path_factory):
    """A language model without pictures."""
    folder = tmp_path_factory.mktemp("models") / "text"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=128, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def without_processor(folder, tmp_path):
    copy = tmp_path / "bare"
    copy.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(folder / name, copy)
    return copy


def test_verify_prints_tables_and_a_line_for_an_issue(folder):
    text = run_command("verify", "--model", folder, "--stack", "vcd", "--stack", "vsv", columns=140)
    assert "LlavaForConditionalGeneration (llava), float32 on cpu" in text
    rows = [line.strip("│ ").split("│")[0].strip() for line in text.splitlines() if line.startswith("│")]
    assert {"repeats", "cache", "rows", "neutral", "restored", "vcd", "vsv"} <= set(rows)
    last = text.splitlines()[-1]
    assert last.startswith("lvlm-guard verify: LlavaForConditionalGeneration (llava) tiny-llava, float32 on cpu")
    assert " pass" in last


@pytest.mark.slow
def test_tables_fit_a_narrow_terminal(folder):
    lines = run_command("verify", "--model", folder, "--stack", "vcd", columns=60).splitlines()
    assert max(map(len, lines[:-3])) <= 60


def test_a_failure_is_exit_code_1_and_what_has_no_logits_is_none(folder, monkeypatch):
    unproven = CliRunner().invoke(app, ["verify", "--model", str(folder), "--stack", "revise"])
    assert unproven.exit_code == 0
    assert "1 unproven" in unproven.stdout
    monkeypatch.setattr(Stack, "of", classmethod(lambda cls, value, allow=(): cls()))
    failed = CliRunner().invoke(app, ["verify", "--model", str(folder), "--stack", "vcd"], env={"COLUMNS": "140"})
    assert failed.exit_code == 1
    assert "What did not pass" in failed.stdout
    assert "Traceback" not in failed.stdout


def test_the_row_is_one_line_of_json_and_a_file_that_the_check_takes(folder, tmp_path):
    row = tmp_path / "row.json"
    printed = run_command("verify", "--model", folder, "--stack", "vcd", "--json", "--out", row)
    assert len(printed.splitlines()) == 1
    values = json.loads(printed)
    assert values == json.loads(row.read_text())
    assert list(values) == ["format", "date", "model", "versions", "checks"]
    assert str(folder.parent) not in printed
    assert read_row(row).to_dict() == values
    assert "valid. lvlm-guard verify:" in run_command("verify", "--check", row)


@pytest.mark.parametrize("size", [(40, 20), (30, 30)])
@pytest.mark.slow
def test_pictures_of_the_user_are_shown_to_the_model(folder, tmp_path, size):
    from PIL import Image  # noqa: PLC0415 - one test needs it

    picture = tmp_path / "picture.png"
    Image.new("RGB", size, "teal").save(picture)
    assert "failed" not in run_command("verify", "--model", folder, "--stack", "vsv", "--image", picture)


def test_mistakes_end_in_a_message(folder, text_only, without_processor, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG no picture")

    def refused(*arguments):
        return run_refused(monkeypatch, capsys, "verify", *arguments)

    assert "--model MODEL, or --check FILE" in refused()
    assert "there is no folder" in refused("--model", tmp_path / "nowhere")
    assert "cannot be loaded as a vision-language model" in refused("--model", text_only)
    assert "cannot be loaded as a vision-language model" in refused("--model", without_processor)
    assert "--image" in refused("--model", folder, "--image", broken)
    assert "--image" in refused("--model", folder, "--image", tmp_path / "none.png")
    assert "--prompt is empty" in refused("--model", folder, "--prompt", " ")
    assert "no folder" in refused("--model", folder, "--out", tmp_path / "none" / "row.json")
    assert "vcd" in refused("--model", folder, "--stack", "vcdd")
    assert "Leave out --model or --check" in refused("--model", folder, "--check", broken)
    assert "is no text" in refused("--check", broken)
    assert "cannot be read" in refused("--check", tmp_path / "none.json")


def test_doctor_shows_parts_cells_and_what_to_do_next(folder):
    text = run_command("doctor", folder, columns=160)
    assert "3 (LlamaDecoderLayer)" in text
    assert "3 of 3" in text
    assert "id 100" in text
    assert "processor_config.json" in text
    assert "chat_template.jinja" in text
    assert "batch removal" in text
    assert f"lvlm-guard verify --model {folder}" in " ".join(text.split())


def test_doctor_needs_neither_weights_nor_processor(without_processor):
    (without_processor / "model.safetensors").unlink()
    values = json.loads(run_command("doctor", without_processor, "--json"))
    parts = {part["name"]: part for part in values["parts"]}
    assert parts["decoder layers"]["is_there"]
    assert not parts["processor"]["is_there"]
    assert not parts["chat template"]["is_there"]
    assert "save_pretrained" in parts["processor"]["remedy"]


def test_doctor_on_a_bare_terminal_fits(folder):
    assert max(map(len, run_command("doctor", folder, columns=60).splitlines()[:-2])) <= 60


def test_doctor_refuses_what_is_no_model(tmp_path, monkeypatch, capsys):
    assert "there is no folder" in run_refused(monkeypatch, capsys, "doctor", tmp_path / "nowhere")
    assert "holds no config.json" in run_refused(monkeypatch, capsys, "doctor", tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in run_refused(monkeypatch, capsys, "doctor", tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert "names no model_type" in run_refused(monkeypatch, capsys, "doctor", tmp_path)


def test_doctor_on_the_bundled_model():
    assert "8 (LlamaDecoderLayer)" in run_command("doctor", "testbed", columns=160)


@pytest.mark.slow
def test_doctor_sees_layers_of_several_kinds(tmp_path):
    text = run_command("doctor", save_model("gemma3", tmp_path / "gemma3"), columns=200)
    assert "sliding window" in text
