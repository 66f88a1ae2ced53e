"""The command line as a user meets it."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from typing import get_args

import pytest
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner

import lvlm_guard
from lvlm_guard import loading, testbed
from lvlm_guard.cli import app, listing, main
from lvlm_guard.dtype_speed import times_slower
from lvlm_guard.errors import GuardWarning, InputError
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.guard import EXECUTORS
from lvlm_guard.host import plugins
from lvlm_guard.host.plugins import Broken, Catalogue, Offer, catalogue
from lvlm_guard.host.presets import PRESETS
from lvlm_guard.testbed.world.scenes import scenes

KEYS = {
    "name", "family", "distribution", "version", "hooks", "paper", "cost", "contrast_strength", "summary", "details", "neutral",
    "parameters",
}  # fmt: skip
NAMES = [offer.name for offer in catalogue()]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    scenes("counterfactual", 1)[0].picture.save(path)
    return str(path)


def run(*arguments, code=0, columns=80, **options):
    width = {"COLUMNS": str(columns)}
    result = CliRunner(env=width).invoke(app, list(map(str, arguments)), prog_name="lvlm-guard", **options)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def complete(words):
    """Completions that the shell is offered for the last of the words."""
    request = {"_LVLM_GUARD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return run(env=request).stdout.split()


def card(offer, width=80):
    printed = StringIO()
    listing.print_card(offer.describe(), Console(file=printed, width=width))
    return printed.getvalue()


def unwrapped(text):
    return " ".join(text.split())


def fails(monkeypatch, capsys, *arguments):
    """What main prints when the library refuses, and the exit code."""
    monkeypatch.setattr(sys, "argv", ["lvlm-guard", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, capsys.readouterr().err


def test_the_version_names_torch_transformers_and_triton():
    (line,) = run("--version").stdout.splitlines()
    torch = metadata.version("torch")  # torch.__version__ may say more
    versions = f"torch {torch}, transformers {transformers.__version__}, triton "
    assert line.startswith(f"lvlm-guard {lvlm_guard.__version__} ({versions}")
    assert re.fullmatch(r"none|[\d.+\w]+", line.removesuffix(")").split()[-1])


def test_the_shell_completes_commands_choices_and_names():
    assert complete("lvlm-guard stra") == ["strategies"]
    assert complete("lvlm-guard generate --dtype float") == ["float32", "float16"]
    assert complete("lvlm-guard strategies vs") == ["vsv"]


def test_help_is_as_wide_as_the_terminal():
    for columns in (80, 120):
        lines = run("--help", columns=columns).stdout.splitlines()
        assert max(map(len, lines)) <= columns
        assert [line for line in lines if "…" in line] == []


def test_strategies_lists_what_is_installed():
    listed = json.loads(run("strategies", "--json").stdout)
    names = [strategy["name"] for strategy in listed]
    assert names == sorted(names)
    assert {"icd", "m3id", "vcd", "vdd"} <= set(names)
    assert all(set(strategy) >= KEYS for strategy in listed)
    vcd = listed[names.index("vcd")]
    alpha = next(parameter for parameter in vcd["parameters"] if parameter["name"] == "alpha")
    assert alpha == {
        "name": "alpha", "type": "number", "default": 1.0, "min": 0, "max": 100.0, "neutral": 0.0,
        "description": "strength of the contrast",
    }  # fmt: skip
    assert vcd["neutral"] == {"alpha": 0.0}
    assert vcd["version"] == lvlm_guard.__version__


def test_the_table_fits_80_columns_uncut():
    lines = run("strategies").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if "…" in line] == []
    presets = next(number for number, line in enumerate(lines) if "Stacks at published settings" in line)
    assert [name for name in PRESETS if name not in "".join(lines[presets:])] == []
    cells = [line.strip("│").split("│") for line in lines[:presets] if line.startswith("│")]
    assert [first.strip() for first, *_ in cells if first.strip()] == NAMES
    effects = unwrapped(" ".join(row[-1] for row in cells))
    assert [offer.name for offer in catalogue() if unwrapped(offer.describe()["summary"]) not in effects] == []


def test_the_list_names_plugins_that_were_not_loaded(monkeypatch):
    broken = Catalogue(dict(catalogue().offers), [Broken("fog", "lvlm-fog", "ImportError: [no] fog")])
    monkeypatch.setattr(plugins, "catalogue", lambda: broken)
    assert "Not loaded: fog of lvlm-fog: ImportError: [no] fog" in run("strategies").stdout


def test_the_list_has_a_table_for_each_distribution(monkeypatch):
    offers = {"vcd": catalogue().offers["vcd"], "fog": Offer(Fog, "lvlm-fog")}
    monkeypatch.setattr(plugins, "catalogue", lambda: Catalogue(offers))
    titles = [line.strip() for line in run("strategies").stdout.splitlines() if "Strategies of" in line]
    assert titles == ["Strategies of lvlm-fog", f"Strategies of lvlm-guard {lvlm_guard.__version__}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_all_that_a_strategy_states(name):
    strategy = catalogue().offers[name].describe()
    printed = run("strategies", name).stdout
    assert max(map(len, printed.splitlines())) <= 80
    text = unwrapped(printed)
    facts = (strategy["summary"], strategy["family"], strategy["paper"], strategy["cost"], ", ".join(strategy["hooks"]))
    assert [fact for fact in (*facts, *strategy["details"].split("\n\n")) if unwrapped(fact) not in text] == []
    for parameter in strategy["parameters"]:
        assert f"{parameter['name']} {parameter['type']}" in text
        assert parameter["description"] in text
        assert f"{parameter['name']} = " in text or parameter["name"] not in strategy["neutral"]


def test_a_card_gives_formula_link_range_default_and_neutral_value():
    text = unwrapped(run("strategies", "vcd").stdout)
    assert "`(1 + alpha) z - alpha z'`" in text
    assert "https://arxiv.org/abs/2311.16922" in text
    assert "alpha number ≥ 0 and ≤ 100, default 1.0, neutral 0.0 strength of the contrast" in text
    assert "noise_step integer ≥ 0 and < 1000, default 500 diffusion step" in text
    assert "neutral alpha = 0.0" in text
    assert f"from lvlm-guard {lvlm_guard.__version__}" in text
    assert "(start | before_image | after_image), default 'before_image'" in unwrapped(run("strategies", "icd").stdout)
    assert "artefact string, required" in unwrapped(run("strategies", "nullu").stdout)
    assert "neutral source = None" in unwrapped(run("strategies", "evidence").stdout)


def test_a_card_links_every_paper():
    assert listing.find_links("arXiv 2310.16045, 2311.07362") == [
        "https://arxiv.org/abs/2310.16045",
        "https://arxiv.org/abs/2311.07362",
    ]
    assert listing.find_links("ICLR 2025, modular attribution and intervention") == []
    assert listing.find_links(None) == []


@dataclass(frozen=True)
class Fog:
    """Dim the [picture]."""

    strength: float = 1.0


def test_a_card_is_silent_about_what_a_strategy_does_not_state():
    printed = card(Offer(Fog, "lvlm-fog"))
    assert "Dim the [picture]." in printed
    assert "strength  number, default 1.0" in printed
    assert [word for word in ("neutral", "paper", "cost", "hooks", "None") if word in printed] == []


def test_a_card_as_json_is_the_entry_of_the_list():
    listed = json.loads(run("strategies", "--json").stdout)
    assert json.loads(run("strategies", "vcd", "--json").stdout) in listed


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_unknown_strategy_is_refused_with_the_nearest_name(monkeypatch, capsys, options):
    code, printed = fails(monkeypatch, capsys, "strategies", "mem_vr", *options)
    assert code == 2
    assert "No strategy is called 'mem_vr'. Did you mean 'memvr'?" in printed


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
    request = ("--model", "testbed", "--image", picture, "--prompt", "describe this image .")
    both = run("generate", *request, "--plain", "--stack", "vdd").stdout
    assert "plain" in both
    assert "vdd" in both
    assert both.count("in this") == 2


def test_generate_loads_a_local_folder(picture, tmp_path):
    model, processor = testbed.load()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    request = ("--image", picture, "--prompt", "describe this image .", "--max-new-tokens", 8)
    assert (
        run("generate", "--model", tmp_path, *request).stdout == run("generate", "--model", "testbed", *request).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere/at/all"], "cannot be loaded as a vision-language model"),
        (["--model", "testbed", "--stack", "vdc"], "Did you mean"),
        (["--model", "testbed", "--image", "nowhere.png"], "there is no such file"),
        (["--model", "testbed", "--dtype", "int8"], "'int8' is not one of 'auto', 'float32', 'bfloat16', 'float16'"),
        (["--model", "testbed", "--executor", "fast"], "'fast' is not one of 'auto', 'batched', 'sequential'"),
        (["--model", "testbed", "--device", "gpu"], "'gpu' is no device that torch can use here"),
        (["--model", "testbed", "--device", "meta"], "'meta' is no device that torch can use here"),
        (["--model", "testbed", "--device", "cuda:99"], "there is no device 'cuda:99'"),
    ],
)
def test_generate_refuses_with_a_message(monkeypatch, capsys, picture, arguments, words):
    code, printed = fails(
        monkeypatch, capsys, "generate", "--prompt", "is there a mug ?", "--image", picture, *arguments
    )
    assert code == 2
    assert words in " ".join(printed.split())
    assert "Traceback" not in printed


def test_help_of_generate_lists_the_choices():
    text = unwrapped(run("generate", "--help", columns=120).stdout)
    assert f"{', '.join(loading.DTYPES)}." in text
    assert f"{', '.join(EXECUTORS)}." in text


def test_choices_of_the_command_line_are_those_of_the_library():
    assert get_args(loading.DtypeName) == tuple(loading.DTYPES)
    assert get_args(ExecutorName) == EXECUTORS


def test_loading_refuses_a_dtype_that_it_does_not_have():
    with pytest.raises(InputError, match="dtype must be one of auto, float32, bfloat16, float16, got 'int8'"):
        loading.load("testbed", "cpu", "int8")


def test_a_folder_without_a_model(monkeypatch, capsys, tmp_path, picture):
    code, printed = fails(monkeypatch, capsys, "generate", "--model", tmp_path, "--prompt", "a", "--image", picture)
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
                assert sides[side]["low"] is sides[side]["high"] is None, "six scenes are too few for an interval"
            assert len({side["n"] for side in sides.values()}) == 1
            assert sides["plain"]["n"] > 0
    assert set(result["cost"]) == {"plain", "guarded"}
    assert result["cost"]["guarded"]["forwards_per_token"]["prefill"] == 2.0


def test_demo_shows_a_table():
    printed = run("demo", "--scenes", 3, "--no-page").stdout
    assert all(level in printed for level in ("object", "attribute", "relation", "caption"))


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


@pytest.mark.parametrize(
    ("dtype", "slower", "warned"),
    [("bfloat16", 107.0, True), ("float16", 107.0, True), ("bfloat16", 0.6, False), ("float32", 107.0, False)],
)
def test_a_dtype_that_the_cpu_is_slow_in_is_said(tmp_path, monkeypatch, recwarn, dtype, slower, warned):
    model, processor = testbed.load("cpu")
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "times_slower", lambda dtype: slower)
    assert loading.load(str(tmp_path), "cpu")[0].dtype == getattr(torch, dtype)
    said = [str(entry.message) for entry in recwarn if entry.category is GuardWarning]
    words = f"This CPU multiplies about 107 times slower in {dtype}, the model's dtype, than in float32. Load it with"
    assert [text[: len(words)] for text in said] == [words] * warned


def test_how_much_slower_a_dtype_is_comes_from_products_in_it():
    assert all(0 < times_slower(dtype) < torch.inf for dtype in (torch.float32, torch.bfloat16, torch.float16))
