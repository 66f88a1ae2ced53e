"""`lvlm-guard plan` and `lvlm-guard bench cost` as a user meets them."""

from __future__ import annotations

import json

import pytest
import transformers
from command_line import run_command, run_refused
from PIL import Image

from lvlm_guard import loading, testbed
from lvlm_guard.bench.running.cost_model import H200, IMAGE_FREE, predict
from lvlm_guard.bench.running.shapes import LLAVA_1_5_7B
from lvlm_guard.testing import tiny

COST_KEYS = {
    "name", "calls", "tokens", "first_ms", "token_ms", "call_ms", "tokens_per_second", "first_ratio", "token_ratio",
    "call_ratio", "forwards", "rows_per_forward", "peak_bytes", "memory",
}  # fmt: skip


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))


@pytest.mark.usefixtures("no_weights")
def test_plan_prints_the_arithmetic_of_the_model():
    asked = ("--model", "LLaVA-1.5-7B", "--stack", "m3id", "--batch", 8, "--tokens", 33, "--hardware", "h200", "--json")
    planned = json.loads(run_command("plan", *asked))
    assert planned["branches"] == [{"name": "no image", "image": 0.0, "text": 0, "encodes": False}]
    assert (planned["batch"], planned["tokens"], planned["image_tokens"], planned["uncounted"]) == (8, 33, 576, [])
    plain, batched, sequential = planned["predictions"]
    assert [one["executor"] for one in planned["predictions"]] == ["none", "batched", "sequential"]
    expected = predict(LLAVA_1_5_7B, H200, [IMAGE_FREE], 8, generated=16.5, padded=True)
    assert (batched["hardware"], batched["token_ms"], batched["token_ratio"]) == (
        "H200",
        expected.step_ms,
        expected.ratio,
    )
    assert (batched["answer_ms"], batched["answer_ratio"]) == (expected.answer_ms(32), expected.answer_ratio(32))
    assert plain["token_ratio"] == plain["first_ratio"] == plain["answer_ratio"] == 1
    assert sequential["token_ms"] > batched["token_ms"] > plain["token_ms"]
    assert sequential["first_ms"] == batched["first_ms"] > plain["first_ms"]


@pytest.mark.usefixtures("no_weights")
def test_plan_reads_the_bundled_model_and_a_folder_with_nothing_but_a_config(tmp_path):
    (tmp_path / "config.json").write_text((testbed.model.WEIGHTS / "config.json").read_text())
    asked = ("--stack", "vcd", "--dtype", "float32", "--json")
    bundled, folder = (json.loads(run_command("plan", "--model", name, *asked)) for name in ("testbed", tmp_path))
    assert bundled["image_tokens"] == 64
    assert bundled["value_bytes"] == 4
    assert {one["hardware"] for one in bundled["predictions"]} == {"A100 80GB SXM", "H100 SXM", "H200"}
    assert folder["predictions"] == bundled["predictions"]
    assert json.loads(run_command("plan", "--model", tmp_path, "--json"))["value_bytes"] == 2


@pytest.mark.usefixtures("no_weights")
def test_plan_counts_text_with_the_models_tokenizer():
    (branch,) = json.loads(run_command("plan", "--model", "testbed", "--stack", "icd", "--json"))["branches"]
    assert branch["text"] > 10


def test_plan_takes_another_machine_and_another_picture():
    asked = ("--model", "llava-1.5-7b", "--image-tokens", 100, "--bandwidth", 50, "--tflops", 1, "--stack", "yes_bias")
    planned = json.loads(run_command("plan", *asked, "--json"))
    assert planned["image_tokens"] == 100
    (plain,) = planned["predictions"]
    assert (plain["hardware"], plain["executor"]) == ("50 GB/s", "none")
    assert plain["token_ms"] > LLAVA_1_5_7B.weight_bytes / 50e9 * 1e3


@pytest.mark.parametrize("stack", ["vdd", "pai", "opera", "yes_bias"])
def test_plan_fits_80_columns_and_names_what_it_leaves_out(stack):
    printed = run_command(
        "plan", "--model", "testbed", "--stack", stack, "--bandwidth", 5, "--tflops", 1, "--hardware", "a100"
    )
    assert max(map(len, printed.splitlines())) <= 80
    words = " ".join(printed.split())
    assert "predicted, not measured" in words
    assert ("Not counted: attention of pai" in words) == (stack == "pai")
    assert ("asks for no branch" in words) == (stack in ("opera", "yes_bias"))
    assert "…" not in printed


def test_plan_refuses_with_a_message(monkeypatch, capsys, tmp_path):
    tiny("gemma3")[0].config.save_pretrained(tmp_path / "windows")
    tiny("qwen2_5_vl")[0].config.save_pretrained(tmp_path / "qwen")
    (tmp_path / "empty").mkdir()
    cases = {
        ("--model", tmp_path / "windows", "--image-tokens", 4): "Measure this model instead: lvlm-guard bench cost",
        ("--model", tmp_path / "qwen"): "(--image-tokens)",
        ("--model", tmp_path / "empty"): "holds no config.json",
        ("--model", "./nowhere"): "there is no folder",
        ("--model", "testbed", "--hardware", "h20"): "no machine is called 'h20'. Did you mean 'h200'?",
        ("--model", "testbed", "--bandwidth", 50): "give both",
        ("--model", "testbed", "--stack", "vdc"): "Did you mean",
        ("--model", "testbed", "--dtype", "int8"): "'int8' is not one of",
        ("--model", "llava-1.5-7b", "--stack", "icd"): "a shape without a tokenizer",
        ("--model", tmp_path / "qwen", "--stack", "icd", "--image-tokens", 4): "The tokenizer of",
    }
    for arguments, words in cases.items():
        assert words in run_refused(monkeypatch, capsys, "plan", *arguments)


def test_cost_measures_stacks_beside_plain():
    asked = ("--stack", "vcd", "--stack", "revise", "--tokens", 4, "--rounds", 2, "--batch", 2)
    measured = json.loads(run_command("bench", "cost", *asked, "--json"))
    assert (measured["model"], measured["device"], measured["batch"]) == ("testbed", "cpu", 2)
    costs = {cost["name"]: cost for cost in measured["costs"]}
    assert list(costs) == ["plain", "vcd", "revise"]
    assert all(set(cost) == COST_KEYS and cost["calls"] == 2 for cost in costs.values())
    assert (costs["vcd"]["tokens"], costs["vcd"]["rows_per_forward"]) == (4, 2)
    assert costs["vcd"]["forwards"] == {"prefill": 2.0, "decode": 1.0}
    assert costs["plain"]["call_ratio"] == {"low": 1, "median": 1, "high": 1}


def test_cost_insists_on_an_executor_and_takes_a_picture(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    asked = (
        "--stack",
        "m3id",
        "--tokens",
        4,
        "--rounds",
        1,
        "--image",
        tmp_path / "red.png",
        "--executor",
        "sequential",
    )
    costs = json.loads(run_command("bench", "cost", *asked, "--json"))["costs"]
    assert costs[1]["forwards"] == {"prefill": 2.0, "decode": 2.0}


@pytest.mark.slow
def test_cost_fits_80_columns():
    printed = run_command("bench", "cost", "--stack", "vdd", "--stack", "opera", "--tokens", 3, "--rounds", 1)
    assert max(map(len, printed.splitlines())) <= 80
    assert all(word in printed for word in ("plain", "vdd", "opera", "first ms", "ratio", "MiB", "Medians of 1 call;"))
    assert "…" not in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stack", "vdc"], "Did you mean"),
        (["--stack", "vcd", "--image", "nowhere.png"], "--image: The picture 'nowhere.png' cannot be read"),
        (["--stack", "vcd", "--executor", "fast"], "'fast' is not one of"),
        (["--stack", "rank"], "needs a scorer"),
    ],
)
def test_cost_refuses_with_a_message(monkeypatch, capsys, arguments, words):
    assert words in run_refused(monkeypatch, capsys, "bench", "cost", *arguments)


def test_cost_refuses_a_size_that_the_model_cannot_take(monkeypatch, capsys, tmp_path):
    model, processor = testbed.load()
    processor.image_processor.do_resize = False
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    refused = run_refused(monkeypatch, capsys, "bench", "cost", "--stack", "vcd", "--size", "50", "--model", tmp_path)
    assert "Name another --image, or another --size" in refused


def test_cost_refuses_a_stack_called_plain(monkeypatch, capsys, tmp_path):
    (tmp_path / "plain.toml").write_text('[[stack]]\nname = "vcd"\n')
    assert "Rename that stack file" in run_refused(
        monkeypatch, capsys, "bench", "cost", "--stack", tmp_path / "plain.toml"
    )
