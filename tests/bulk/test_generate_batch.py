"""Every unit of a file is answered once, whatever happens on the way, and a bad line costs only itself."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from command_line import run_refused
from served import draw_picture
from typer.testing import CliRunner

from lvlm_guard import Guard, InputError, loading
from lvlm_guard.bulk.answerers import GuardAnswerer
from lvlm_guard.bulk.answering import answer_units
from lvlm_guard.bulk.ledger import AnswerLedger
from lvlm_guard.bulk.pools import OwnProcess
from lvlm_guard.bulk.units import BulkUnit, LineReader, RejectedLine
from lvlm_guard.cli import app

MANIFEST = {"format": 1, "input": "a"}
SETTINGS = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def guard():
    model, processor = loading.load("testbed", "cpu")
    return Guard(model, processor, "vcd")


@pytest.fixture
def source(tmp_path):
    """Six units, and between them lines that cannot be used."""
    lines = []
    for index in range(6):
        draw_picture(index).save(tmp_path / f"{index}.png")
        questions = ["what is in the picture ?", "is there a boat ?"][: 1 + index % 2]
        lines.append(json.dumps({"id": f"u{index}", "image": f"{index}.png", "questions": questions}))
    lines.insert(1, "{broken")
    lines.insert(3, json.dumps({"id": "u0", "image": "1.png", "question": "again ?"}))
    lines.insert(4, "")
    lines.insert(5, json.dumps({"image": "missing.png", "question": "what ?"}))
    path = tmp_path / "input.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def read_answers(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def answer_here(guard, source, ledger):
    return answer_units(OwnProcess(GuardAnswerer(guard, SETTINGS)), LineReader(source), ledger)


def test_answers_are_the_guards_and_bad_lines_are_left_out(guard, source, tmp_path):
    with AnswerLedger(tmp_path / "out", MANIFEST) as ledger:
        outcome = answer_here(guard, source, ledger)
    assert (outcome.answered, outcome.before) == (6, 0)
    assert [entry.line for entry in outcome.rejected] == [2, 4, 6]
    assert "line 1" in outcome.rejected[1].reason
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["line"] for line in rejected] == [2, 4, 6]
    entries = read_answers(tmp_path / "out")
    assert [entry["id"] for entry in entries] == [f"u{index}" for index in range(6)]
    for index, entry in enumerate(entries):
        for pair in entry["answers"]:
            content = [{"type": "image", "image": draw_picture(index)}, {"type": "text", "text": pair["question"]}]
            assert pair["answer"] == guard.chat([{"role": "user", "content": content}], **SETTINGS)
    assert len({pair["answer"] for entry in entries for pair in entry["answers"]}) > 2


def test_a_job_that_was_cut_off_goes_on_where_it_was(guard, source, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with AnswerLedger(whole, MANIFEST) as ledger:
        answer_here(guard, source, ledger)
    content = (whole / "answers.jsonl").read_bytes()
    for cut in (0, 1, len(content) // 3, len(content) // 2, len(content) - 1, len(content)):
        parts.mkdir(exist_ok=True)
        (parts / "answers.jsonl").write_bytes(content[:cut])
        (parts / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
        with AnswerLedger(parts, MANIFEST) as ledger:
            known = len(ledger.finished)
            outcome = answer_here(guard, source, ledger)
        assert (outcome.before, outcome.answered) == (known, 6 - known)
        assert known == content[:cut].count(b"\n")
        assert (parts / "answers.jsonl").read_bytes() == content


def test_a_unit_at_which_the_model_raises_is_left_out(guard, source, tmp_path, monkeypatch):
    monkeypatch.setattr(guard.processor.image_processor, "do_resize", False)
    draw_picture(1).resize((48, 48)).save(tmp_path / "1.png")
    with AnswerLedger(tmp_path / "out", MANIFEST) as ledger:
        outcome = answer_here(guard, source, ledger)
    assert outcome.answered == 5
    assert any("48*48" in entry.reason for entry in outcome.rejected)


def test_a_folder_of_another_job_or_process_is_refused(tmp_path):
    with AnswerLedger(tmp_path / "out", MANIFEST), pytest.raises(InputError, match="another process"):
        AnswerLedger(tmp_path / "out", MANIFEST)
    with pytest.raises(InputError, match="begun with input 'a', now it is 'b'"):
        AnswerLedger(tmp_path / "out", {**MANIFEST, "input": "b"})
    (tmp_path / "out" / "answers.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1"):
        AnswerLedger(tmp_path / "out", MANIFEST)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"without manifest\.json"):
        AnswerLedger(tmp_path / "out", MANIFEST)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[]", "object"),
        ('{"image": "a.png"}', "either"),
        ('{"image": "a.png", "question": "a", "questions": ["b"]}', "either"),
        ('{"image": "a.png", "questions": []}', "questions"),
        ('{"image": "a.png", "question": " "}', "empty"),
        ('{"image": 3, "question": "a"}', "image"),
        ('{"image": "a.png", "question": "a", "foo": 1}', "foo"),
        ('{"id": "", "image": "a.png", "question": "a"}', "id"),
        ('{"image": "a.png", "question": "a", "question": "b"}', "'question' stands there twice"),
        ('{"image": "a.png", "question": "\\ud83d"}', "half a character"),
        ('{"id": "\\udc00", "image": "a.png", "question": "a"}', "half a character"),
        ("[" * 100_000, ""),
        ('"\xff', ""),
    ],
)
def test_a_line_that_cannot_be_used(tmp_path, line, words):
    path = tmp_path / "input.jsonl"
    path.write_bytes(line.encode("latin-1") + b'\n{"image": "a.png", "question": "a"}\n')
    rejected, unit = LineReader(path)
    assert isinstance(rejected, RejectedLine)
    assert words in rejected.reason
    assert unit == BulkUnit(2, "line 2", tmp_path / "a.png", ("a",))
    assert dataclasses.asdict(rejected)["line"] == 1


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(source, tmp_path):
    out = tmp_path / "out"
    options = [str(source), "--model", "testbed", "--out", str(out), "--max-new-tokens", "4", "--device", "cpu"]
    code = "from lvlm_guard.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, "generate-batch", *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    answers = out / "answers.jsonl"
    until = time.monotonic() + 120
    while not (answers.exists() and answers.read_bytes().count(b"\n")) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = answers.read_bytes()
    result = CliRunner().invoke(app, ["generate-batch", *options])
    assert result.exit_code == 1, result.output  # some lines were left out
    assert answers.read_bytes().startswith(begun[: begun.rfind(b"\n") + 1])
    assert [entry["id"] for entry in read_answers(out)] == [f"u{index}" for index in range(6)]
    assert "line 2:" in result.output


@pytest.mark.slow
def test_two_processes_with_the_model_answer_as_one(source, tmp_path):
    for workers in ("1", "2"):
        options = ["--model", "testbed", "--max-new-tokens", "4", "--device", "cpu", "--workers", workers]
        code = "from lvlm_guard.cli import main; main()"
        command = [sys.executable, "-W", "ignore", "-c", code, "generate-batch", str(source), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--out", str(tmp_path / workers)], env=environment, capture_output=True, check=False
        )
        assert done.returncode == 1, done.stderr
    for name in ("answers.jsonl", "rejected.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert len(read_answers(tmp_path / "2")) == 6


@pytest.mark.parametrize(
    ("name", "options", "package", "extra"),
    [
        ("a.jsonl", ["--ray", "local"], "ray", "lvlm-guard[ray]"),
        ("a.jsonl", ["--write", "parquet"], "pyarrow", "lvlm-guard[parquet]"),
        ("a.parquet", [], "pyarrow", "lvlm-guard[parquet]"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    monkeypatch, capsys, tmp_path, name, options, package, extra
):
    (tmp_path / name).write_bytes(b"")
    for module in (package, "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    asked = (tmp_path / name, "--model", "testbed", "--out", tmp_path / "out", *options)
    message = run_refused(monkeypatch, capsys, "generate-batch", *asked)
    assert package in message
    assert extra in message


def test_what_is_refused_at_once(monkeypatch, capsys, tmp_path):
    for name, words in (("a.csv", ".jsonl"), ("a.jsonl", "no such file")):
        options = (tmp_path / name, "--model", "testbed", "--out", tmp_path / "out")
        assert words in run_refused(monkeypatch, capsys, "generate-batch", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rejected.jsonl", "answers.jsonl", "link.jsonl"])
def test_an_input_is_never_written_over(monkeypatch, capsys, tmp_path, name):
    """A file that the job would write, by its own name or through a link."""
    path = tmp_path / ("rejected.jsonl" if name == "link.jsonl" else name)
    path.write_text('{"image": "a.png", "question": "a"}\n', encoding="utf-8")
    (tmp_path / "link.jsonl").symlink_to(path)
    before = path.read_bytes()
    options = (tmp_path / name, "--model", "testbed", "--stack", "plain", "--out", tmp_path)
    assert "would be written over" in run_refused(monkeypatch, capsys, "generate-batch", *options)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted({path.name, "link.jsonl"})


def test_an_input_that_changes_while_it_is_answered_is_said(monkeypatch, capsys, source, tmp_path):
    changed = source.read_text() + '{"image": "b.png", "question": "more ?"}\n'

    class Changing(OwnProcess):
        def submit(self, worker, unit):
            source.write_text(changed, encoding="utf-8")
            super().submit(worker, unit)

    monkeypatch.setattr("lvlm_guard.cli.bulk._open_pool", lambda *_: Changing(lambda unit: list(unit.questions)))
    options = (source, "--model", "testbed", "--stack", "plain", "--out", tmp_path / "out")
    assert "has changed while it was answered" in run_refused(monkeypatch, capsys, "generate-batch", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine-options", "{}"], "add --engine vllm"),
        (["--engine", "vllm", "--device", "cpu"], "vLLM places models itself"),
        (["--engine", "vllm", "--tp", "2"], "vLLM places models itself"),
    ],
)
def test_options_of_one_engine_beside_another_are_refused(monkeypatch, capsys, source, tmp_path, options, message):
    out = tmp_path / "out"
    asked = ("generate-batch", source, "--model", "testbed", "--out", out, *options)
    assert message in run_refused(monkeypatch, capsys, *asked)
    assert not out.exists()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_its_extra_is_named_and_nothing_is_left(monkeypatch, capsys, source, tmp_path):
    out = tmp_path / "out"
    asked = ("generate-batch", source, "--model", "testbed", "--out", out, "--engine", "vllm")
    assert "pip install 'lvlm-guard[vllm]'" in run_refused(monkeypatch, capsys, *asked)
    assert not out.exists()
