"""Both harnesses, installed and run as users run them, on the bundled model: `make test-harnesses`."""

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
BY_LM_EVAL = Path(__file__).with_name("evaluate_by_lm_eval.py")


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A function that runs a Python command offline in an empty folder: (exit code, stdout, everything printed)."""
    folder = tmp_path_factory.mktemp("run")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}

    def run(*words):
        told = [sys.executable, *map(str, words)]
        done = subprocess.run(
            told, cwd=folder, env={**outside, **settings}, capture_output=True, text=True, check=False, timeout=280
        )
        return done.returncode, done.stdout, f"{done.stdout}\n{done.stderr}"

    return run


@pytest.fixture(scope="module")
def answers(speaking, asked, drawn):
    """What generate says without a guard, and what `guard.generate` says, in batches as lmms-eval forms them."""

    def said(stack):
        guard = Guard(*speaking, stack)
        parts = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
        return [text for part in parts for text in answered(guard, part)]

    return {"plain": said([]), "guarded": said(drawn / "stack.toml")}


def answered(guard, part):
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
        for picture, text, _ in part
    ]
    inputs = guard.inputs(messages=chats)
    output = guard.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [one.strip() for one in guard.processor.batch_decode(new, skip_special_tokens=True)]


@pytest.fixture(scope="module")
def lmms_eval(command, drawn, tmp_path_factory):
    """A function from model arguments to lmms-eval's exit code, what it printed, and its folder of results."""

    def run(arguments):
        results = tmp_path_factory.mktemp("results")
        code, _, told = command(
            *("-m", "lmms_eval", "--model", "lvlm_guard", "--model_args", arguments, "--tasks", "drawn"),
            *("--include_path", drawn / "lmms_eval", "--batch_size", BATCH, "--device", "cpu"),
            *("--output_path", results, "--log_samples"),
        )
        return code, told, results

    return run


@pytest.fixture(scope="module")
def guarded_run(lmms_eval, drawn):
    code, told, folder = lmms_eval(f"pretrained=testbed,stack={drawn / 'stack.toml'}")
    assert code == 0, told
    results = json.loads(next(folder.rglob("*results.json")).read_text(encoding="utf-8"))
    lines = next(folder.rglob("*samples_drawn.jsonl")).read_text(encoding="utf-8").splitlines()
    samples = sorted((json.loads(line) for line in lines), key=lambda one: int(one["doc_id"]))
    return told, results, samples


def test_lmms_eval_gets_the_answers_of_guarded_generate(guarded_run, answers):
    _, _, samples = guarded_run
    assert [one["filtered_resps"] for one in samples] == answers["guarded"]
    assert answers["guarded"] != answers["plain"]


def test_lmms_eval_writes_and_prints_the_cost(guarded_run, asked):
    told, results, samples = guarded_run
    cost = results["throughput"]
    assert cost["avg_forwards_prefill"] == 2.0
    assert cost["avg_forwards_decode"] * cost["avg_rows_per_forward"] == 2.0
    assert cost["avg_peak_resident_mb"] > 50
    assert 0 < cost["avg_changed_vcd"] < 1
    assert cost["avg_latency"] == pytest.approx(cost["total_elapsed_time"] / len(asked))
    assert cost["total_gen_tokens"] == sum(one["token_counts"][0]["output_tokens"] for one in samples)
    printed = [name for name in cost if f"|{name} " in told]
    assert {"avg_forwards_prefill", "avg_forwards_decode", "avg_peak_resident_mb", "avg_latency"} <= set(printed)


def test_lmms_eval_shows_the_guards_warnings(guarded_run):
    told, _, _ = guarded_run
    assert "left out: image_aspect_ratio" in told


def test_lmms_eval_shows_the_librarys_errors_and_writes_no_results(lmms_eval):
    """Its exit code is 0 all the same."""
    _, told, folder = lmms_eval("pretrained=testbed,stack=vcdd")
    assert "StackError: stack[0]: " in told
    assert "'vcdd'" in told
    assert list(folder.rglob("*.json")) == []


@pytest.fixture(scope="module")
def lm_eval(command, drawn):
    """A function from the way to run lm-eval to what came out of it; each is run once."""

    @functools.cache
    def run(way):
        code, printed, told = command(BY_LM_EVAL, drawn / "lm_eval", drawn / "stack.toml", way)
        assert code == 0, told
        return json.loads(printed.splitlines()[-1])

    return run


def test_lm_eval_gets_the_answers_of_guarded_generate_by_either_way(lm_eval, answers):
    by_class, attached, plain = (lm_eval(way) for way in ("class", "attached", "plain"))
    assert by_class["answers"] == answers["guarded"]
    assert attached["answers"] == answers["guarded"]
    assert plain["answers"] == answers["plain"] != answers["guarded"]
    assert attached["config"] is None


def test_lm_eval_writes_stack_and_cost(lm_eval, asked):
    told = lm_eval("class")["config"]
    assert told["stack"][0] == {"name": "vcd", "params": {**told["stack"][0]["params"], "alpha": 3.0}}
    assert (told["requests"], told["calls"]) == (len(asked), 3)
    assert told["forwards_prefill"] == 2.0
    assert told["peak_resident_mb"] > 50
    assert told["tokens_per_second"] == pytest.approx(told["tokens"] / told["seconds"])
