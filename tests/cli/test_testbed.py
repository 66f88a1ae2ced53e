"""`lvlm-guard testbed` and the page of `lvlm-guard demo`."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from lvlm_guard.cli import app, demonstration
from lvlm_guard.errors import InputError
from lvlm_guard.testbed import model as testbed_model
from lvlm_guard.testbed.model import WEIGHTS
from lvlm_guard.testbed.training import train


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def refused(*arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert isinstance(result.exception, InputError), result.output + repr(result.exception)
    return str(result.exception)


def test_show_writes_a_sheet(tmp_path):
    assert "8 scenes of iid" in run("testbed", "show", "--split", "iid", "--count", 8, "--out", "seen.png")
    assert [one.name for one in tmp_path.iterdir()] == ["seen.png"]
    with Image.open("seen.png") as sheet:
        assert sheet.width > 6 * 256


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "idd"], "Did you mean 'iid'? Known: calibration, counterfactual, flat, iid, train."),
        (["--count", 0], "count must be from 1 to 200, got 0"),
        (["--count", 201], "count must be from 1 to 200, got 201"),
        (["--seed", -1], "seed must not be negative"),
        (["--out", "sheet.jpg"], "Name it sheet.png"),
        (["--out", "nowhere/sheet.png"], "nowhere does not exist"),
    ],
)
def test_show_refuses_with_a_message(tmp_path, arguments, words):
    assert words in refused("testbed", "show", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_train_hands_its_options_on(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr(train, "run", plans.append)
    assert "--model new" in run("testbed", "train", "--out", "new", "--seed", 3, "--minutes", 2, "--processes", 1)
    run("testbed", "train", "--out", "new")
    assert plans[0] == train.TrainingPlan(out=plans[0].out, seed=3, minutes=2.0, processes=1)
    assert plans[1] == train.TrainingPlan(out=plans[0].out)


def test_train_on_a_gpu_takes_one_process(monkeypatch):
    plans = []
    monkeypatch.setattr(train, "run", plans.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    run("testbed", "train", "--out", "new", "--device", "cuda")
    assert (plans[0].device, plans[0].processes) == ("cuda", 1)
    assert "by one process" in refused("testbed", "train", "--out", "new", "--device", "cuda", "--processes", 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cuda"], "torch sees 0 CUDA devices here. Use one of those, or --device cpu."),
        (["--device", "tpu"], "device must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--minutes", 0], "minutes must be a number above 0"),
        (["--minutes", "nan"], "minutes must be a number above 0"),
        (["--minutes", "inf"], "minutes must be a number above 0"),
        (["--seed", -1], "seed must not be negative"),
        (["--processes", 0], "processes must be from 1 to 32"),
        (["--out", "nowhere/new"], "nowhere does not exist"),
        (["--out", "file"], "must be a folder"),
    ],
)
def test_train_refuses_with_a_message(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(train, "_run", lambda plan: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    place = () if "--out" in arguments else ("--out", "new")
    assert words in refused("testbed", "train", *place, *arguments)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_train_says_how_long_and_that_it_resumes():
    told = " ".join(run("testbed", "train", "--help").split())
    assert f"about {train.NOMINAL_MINUTES:g} minutes" in told
    assert f"by default {train.NOMINAL_MINUTES:g};" in told.replace("│ │ ", "")
    assert "resumes" in told


def without(folder, *names):
    for name in names:
        (folder / name).unlink()


def text_only(folder):
    shutil.rmtree(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=40, **shape)).save_pretrained(folder)


def half_the_weights(folder):
    kept = {name: value for name, value in load_file(folder / "model.safetensors").items() if "projector" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


@pytest.mark.filterwarnings("ignore:This CPU multiplies about")
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (text_only, "cannot be loaded as a vision-language model: Unrecognized configuration class"),
        (lambda folder: without(folder, "config.json"), "holds no config.json, so it is not a model folder"),
        (lambda folder: without(folder, "model.safetensors"), "no file named "),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"),
            "cannot be loaded as a vision-language",
        ),
        (truncated, "cannot be loaded as a vision-language model"),
        (half_the_weights, "has no weights for model.multi_modal_projector.linear_1.bias"),
        (lambda folder: (folder / "config.json").write_text("{half"), "cannot be loaded as a vision-language model"),
        (lambda folder: without(folder, "preprocessor_config.json"), "cannot be loaded as a vision-language model"),
        (lambda folder: without(folder, "chat_template.jinja"), "has no chat template"),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_demo_refuses_a_folder_that_is_no_whole_model(tmp_path, spoil, words):
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS, folder)
    spoil(folder)
    assert words in refused("demo", "--model", folder, "--stack", "vsv", "--scenes", 2, "--no-page")
    assert {one.name for one in tmp_path.iterdir()} <= {"model"}


def test_demo_writes_its_page(tmp_path):
    assert "demo.html" in run("demo", "--scenes", 2)
    assert "<!DOCTYPE html>" in (tmp_path / "demo.html").read_text(encoding="utf-8")[:20]
    assert [one.name for one in tmp_path.iterdir()] == ["demo.html"]


@pytest.mark.slow
def test_demo_takes_the_stack_that_was_chosen_where_none_is_named(tmp_path, monkeypatch):
    chosen = tmp_path / "chosen.toml"
    chosen.write_text('[[stack]]\nname = "m3id"\n')
    monkeypatch.setattr(testbed_model, "DEMO_STACK", chosen)
    assert json.loads(run("demo", "--scenes", 2, "--json"))["stack"] == "m3id"
    chosen.write_text("stack = []\n")
    assert json.loads(run("demo", "--scenes", 2, "--json"))["stack"] == "no strategy"


def test_where_the_page_goes(tmp_path):
    asked = tmp_path / "asked.html"
    assert demonstration._destination(None, skip=False, as_json=False) == demonstration.PAGE
    assert demonstration._destination(None, skip=False, as_json=True) is None
    assert demonstration._destination(None, skip=True, as_json=False) is None
    assert demonstration._destination(asked, skip=False, as_json=True) == asked


def test_demo_refuses_before_any_work(monkeypatch):
    monkeypatch.setattr(demonstration.loading, "load", lambda *a: pytest.fail("loaded"))
    assert "nowhere does not exist" in refused("demo", "--page", "nowhere/demo.html")
    assert "exclude each other" in refused("demo", "--page", "a.html", "--no-page")
    assert "For another model give one, as in --stack vsv" in refused("demo", "--model", "elsewhere", "--no-page")
