"""Both harnesses, installed and run the way users run them, on the bundled model: `make test-harnesses`."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvlm_guard import Guard

pytestmark = [pytest.mark.harness, pytest.mark.timeout(900)]

BATCH = 4
LENGTH = 44
LAST_LINES = 40
BY_LM_EVAL = Path(__file__).with_name("evaluate_by_lm_eval.py")


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A function that runs a Python command offline in an empty folder: (exit code, stdout, all output)."""
    folder = tmp_path_factory.mktemp("run")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}

    def run(*words):
        process = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=folder,
            env={**environment, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        return process.returncode, process.stdout, f"{process.stdout}\n{process.stderr}"

    return run


@pytest.fixture(scope="module")
def answers(bundled, documents, task_folder):
    """Answers of plain generate and of `guard.generate`, in the batches that lmms-eval forms."""

    def answer_all(stack):
        guard = Guard(*bundled, stack)
        batches = [documents[start : start + BATCH] for start in range(0, len(documents), BATCH)]
        return [text for batch in batches for text in answer_batch(guard, batch)]

    return {"plain": answer_all([]), "guarded": answer_all(task_folder / "stack.toml")}


def answer_batch(guard, batch):
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
        for picture, text, _ in batch
    ]
    inputs = guard.inputs(messages=chats)
    output = guard.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
    generated = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in guard.processor.batch_decode(generated, skip_special_tokens=True)]


@pytest.fixture(scope="module")
def lmms_eval(command, task_folder, tmp_path_factory):
    """A function from model arguments to lmms-eval's exit code, its output, and its folder of results."""

    def run(arguments):
        results = tmp_path_factory.mktemp("results")
        code, _, printed = command(
            *("-m", "lmms_eval", "--model", "lvlm_guard", "--model_args", arguments, "--tasks", "drawn"),
            *("--include_path", task_folder / "lmms_eval", "--batch_size", BATCH, "--device", "cpu"),
            *("--output_path", results, "--log_samples"),
        )
        return code, printed, results

    return run


def read_written(folder, pattern, code, printed):
    """Return a file that a harness wrote; where it did not, say what it printed last, since its exit code says nothing."""
    path = next(folder.rglob(pattern), None)
    if path is None:
        said = "\n".join(printed.strip().splitlines()[-LAST_LINES:])
        pytest.fail(
            f"the harness ended with exit code {code} and wrote no {pattern}. It said last:\n{said}", pytrace=False
        )
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def guarded_run(lmms_eval, task_folder):
    code, printed, folder = lmms_eval(f"pretrained=testbed,stack={task_folder / 'stack.toml'}")
    results = json.loads(read_written(folder, "*results.json", code, printed))
    lines = read_written(folder, "*samples_drawn.jsonl", code, printed).splitlines()
    samples = sorted((json.loads(line) for line in lines), key=lambda sample: int(sample["doc_id"]))
    return printed, results, samples


def test_lmms_eval_gets_the_answers_of_guarded_generate(guarded_run, answers):
    _, _, samples = guarded_run
    assert [sample["filtered_resps"] for sample in samples] == answers["guarded"]
    assert answers["guarded"] != answers["plain"]


def test_lmms_eval_writes_and_prints_the_cost(guarded_run, documents):
    printed, results, samples = guarded_run
    cost = results["throughput"]
    assert cost["avg_forwards_prefill"] == 2.0
    assert cost["avg_forwards_decode"] * cost["avg_rows_per_forward"] == 2.0
    assert cost["avg_peak_resident_mb"] > 50
    assert 0 < cost["avg_changed_vcd"] < 1
    assert cost["avg_latency"] == pytest.approx(cost["total_elapsed_time"] / len(documents))
    assert cost["total_gen_tokens"] == sum(sample["token_counts"][0]["output_tokens"] for sample in samples)
    in_table = [name for name in cost if f"|{name} " in printed]
    assert {"avg_forwards_prefill", "avg_forwards_decode", "avg_peak_resident_mb", "avg_latency"} <= set(in_table)


def test_lmms_eval_shows_the_guards_warnings(guarded_run):
    printed, _, _ = guarded_run
    assert "left out: image_aspect_ratio" in printed


def test_lmms_eval_shows_the_librarys_errors_and_writes_no_results(lmms_eval):
    """The exit code is 0 nevertheless."""
    _, printed, folder = lmms_eval("pretrained=testbed,stack=vcdd")
    assert "StackError: stack[0]: " in printed
    assert "'vcdd'" in printed
    assert list(folder.rglob("*.json")) == []


@pytest.fixture(scope="module")
def lm_eval(command, task_folder):
    """A function from a mode of running lm-eval to its results; each mode runs once."""

    @functools.cache
    def run(mode):
        code, stdout, printed = command(BY_LM_EVAL, task_folder / "lm_eval", task_folder / "stack.toml", mode)
        said = "\n".join(printed.strip().splitlines()[-LAST_LINES:])
        assert code == 0, f"the harness ended with exit code {code}. It said last:\n{said}"
        return json.loads(stdout.splitlines()[-1])

    return run


def test_lm_eval_gets_the_answers_of_guarded_generate_in_both_modes(lm_eval, answers):
    by_class, attached, plain = (lm_eval(mode) for mode in ("class", "attached", "plain"))
    assert by_class["answers"] == answers["guarded"]
    assert attached["answers"] == answers["guarded"]
    assert plain["answers"] == answers["plain"] != answers["guarded"]
    assert attached["config"] is None


def test_lm_eval_writes_stack_and_cost(lm_eval, documents):
    config = lm_eval("class")["config"]
    assert config["stack"][0] == {"name": "vcd", "params": {**config["stack"][0]["params"], "alpha": 3.0}}
    assert (config["requests"], config["calls"]) == (len(documents), 3)
    assert config["forwards_prefill"] == 2.0
    assert config["peak_resident_mb"] > 50
    assert config["tokens_per_second"] == pytest.approx(config["tokens"] / config["seconds"])
