"""The command line as a user meets it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lvlm_guard import testbed
from lvlm_guard.cli import app, main
from lvlm_guard.testbed.world.scenes import scenes

KEYS = {"name", "family", "distribution", "hooks", "paper", "cost", "summary", "parameters"}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    scenes("counterfactual", 1)[0].picture.save(path)
    return str(path)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def fails(monkeypatch, capsys, *arguments):
    """What main prints when the library refuses, and the exit code."""
    monkeypatch.setattr(sys, "argv", ["lvlm-guard", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, capsys.readouterr().err


def test_strategies_lists_what_is_installed():
    listed = json.loads(run("strategies", "--json").stdout)
    names = [one["name"] for one in listed]
    assert names == sorted(names)
    assert {"icd", "m3id", "vcd", "vdd"} <= set(names)
    assert all(set(one) >= KEYS for one in listed)
    alpha = next(one for one in listed[names.index("vcd")]["parameters"] if one["name"] == "alpha")
    assert alpha == {
        "name": "alpha", "type": "number", "default": 1.0, "min": 0, "neutral": 0.0,
        "description": "strength of the contrast",
    }  # fmt: skip
    assert "vcd" in run("strategies").stdout


def test_stack_validate_accepts_and_names_what_is_wrong(tmp_path, monkeypatch, capsys):
    path = tmp_path / "stack.toml"
    path.write_text('[[stack]]\nname = "vcd"\nparams = {alpha = 0.5}\n')
    assert "VCD(alpha=0.5" in run("stack", "validate", path).stdout
    path.write_text('[[stack]]\nname = "vcd"\nparams = {alpah = 0.5}\n')
    code, printed = fails(monkeypatch, capsys, "stack", "validate", path)
    assert code == 2
    assert "stack[0].params.alpah" in printed
    assert "Did you mean 'alpha'" in printed


def test_a_path_with_brackets_is_printed_as_it_is(tmp_path, monkeypatch, capsys):
    path = tmp_path / "[bold]stack.toml"
    assert str(path) in fails(monkeypatch, capsys, "stack", "validate", path)[1].replace("\n", "")


def test_generate_streams_the_guarded_answer(picture):
    result = run("generate", "--model", "testbed", "--image", picture, "--prompt", "describe this image .", "--report")
    assert result.stdout.strip().startswith("in this")
    assert json.loads(result.output.strip().split("\n")[-1])["strategies"][0]["name"] == "vcd"


def test_generate_puts_plain_and_guarded_side_by_side(picture):
    asked = ("--model", "testbed", "--image", picture, "--prompt", "describe this image .")
    both = run("generate", *asked, "--plain", "--stack", "vdd").stdout
    assert "plain" in both
    assert "vdd" in both
    assert both.count("in this") == 2


def test_generate_loads_a_local_folder(picture, tmp_path):
    model, processor = testbed.load()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    asked = ("--image", picture, "--prompt", "describe this image .", "--max-new-tokens", 8)
    assert run("generate", "--model", tmp_path, *asked).stdout == run("generate", "--model", "testbed", *asked).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere/at/all"], "cannot be loaded as a vision-language model"),
        (["--model", "testbed", "--stack", "vdc"], "Did you mean"),
        (["--model", "testbed", "--image", "nowhere.png"], "nowhere.png"),
        (["--model", "testbed"], "needs an image"),
        (["--model", "testbed", "--dtype", "int8"], "dtype must be one of"),
        (["--model", "testbed", "--executor", "fast"], "executor must be one of"),
    ],
)
def test_generate_refuses_with_a_message(monkeypatch, capsys, arguments, words):
    code, printed = fails(monkeypatch, capsys, "generate", "--prompt", "is there a mug ?", *arguments)
    assert code == 2
    assert words in " ".join(printed.split())
    assert "Traceback" not in printed


def test_a_folder_without_a_model(monkeypatch, capsys, tmp_path):
    code, printed = fails(monkeypatch, capsys, "generate", "--model", tmp_path, "--prompt", "a")
    assert code == 2
    assert "config.json" in printed


def test_demo_measures_both_sides():
    """The shape is a promise to whoever reads the JSON."""
    result = json.loads(run("demo", "--scenes", 6, "--stack", "vcd", "--json").stdout)
    assert list(result) == ["model", "stack", "scenes", "splits", "cost"]
    assert (result["model"], result["stack"], result["scenes"]) == ("LlavaForConditionalGeneration", "vcd", 6)
    assert set(result["splits"]) == {"counterfactual", "iid"}
    for levels in result["splits"].values():
        assert set(levels) >= {"object", "attribute", "relation", "caption"}
        for sides in levels.values():
            assert set(sides) == {"plain", "guarded", "difference"}
            for side in sides.values():
                assert set(side) == {"value", "low", "high", "n"}
            for side in ("plain", "guarded"):
                assert sides[side]["low"] <= sides[side]["value"] <= sides[side]["high"]
            assert len({side["n"] for side in sides.values()}) == 1
            assert sides["plain"]["n"] > 0
    assert set(result["cost"]) == {"plain", "guarded"}
    assert result["cost"]["guarded"]["forwards_per_token"]["prefill"] == 2.0


def test_demo_shows_a_table():
    told = run("demo", "--scenes", 3, "--no-page").stdout
    assert all(level in told for level in ("object", "attribute", "relation", "caption"))


def test_demo_refuses_too_few_scenes():
    assert "--scenes" in run("demo", "--scenes", 0, code=2).output


def test_the_command_is_installed():
    printed = subprocess.run(
        [sys.executable, "-c", "from lvlm_guard.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "strategies" in printed.stdout
