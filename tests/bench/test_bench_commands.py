"""`lvlm-guard bench` as a user meets it."""

import csv
import functools
import json
import shutil

import pytest
import transformers
from command_line import run_command, run_refused
from typer.testing import CliRunner

from lvlm_guard import loading
from lvlm_guard.bench.catalogue import catalogue
from lvlm_guard.bench.running import choosing
from lvlm_guard.bench.running.systems import CONTROLS
from lvlm_guard.cli import app
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.suite import Scenes

SWITCHED_OFF = [option for name in CONTROLS[1:] if name != "pba" for option in ("--without", name)]


run = functools.partial(run_command, columns=200)  # tables of runs are wide


@pytest.fixture(autouse=True)
def _transformers_speaks_again():
    before = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(before)
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    asked = ("bench", "run", "scenes:count=6,captions=2", "--stack", "vcd", "--stack", "rank", *SWITCHED_OFF)
    return folder, run(*asked, "--out", folder)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_list_tells_what_every_suite_needs():
    listed = {one["name"]: one for one in json.loads(run("bench", "list", "--json"))}
    assert set(listed) == set(catalogue().names)
    assert listed["scenes"]["required"] == []
    assert listed["scenes"]["arguments"] == {
        "split": "counterfactual",
        "count": 60,
        "seed": 0,
        "captions": None,
        "questions": None,
        "design": "balanced",
    }
    assert all(set(need) >= {"path", "what", "source", "layout"} for need in listed["pope"]["required"])
    assert all(one["parsers"] and one["licence"] for one in listed.values())
    assert {one["distribution"] for one in listed.values()} == {"lvlm-guard"}
    table = run("bench", "list")
    assert all(name in table for name in listed)


def test_run_shows_the_controls_the_stacks_and_what_was_left_out(finished):
    folder, told = finished
    assert all(name in told for name in ("greedy", "pba", "vcd against greedy", "p (Holm)", "parser ours"))
    assert "Switched off: bias, contrarian, mask_only, olm, sampling, swap, temperature, yes_bias." in told
    assert "scenes, rank refused: 'rank' needs a scorer" in told
    assert "scenes: verdicts" in told
    assert "Figures say nothing about other models." in told
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["without"] == [
        "bias",
        "contrarian",
        "mask_only",
        "olm",
        "sampling",
        "swap",
        "temperature",
        "yes_bias",
    ]
    assert manifest["suites"]["scenes"]["arguments"] == {"count": 6, "captions": 2, "design": "balanced"}
    assert {"torch", "transformers", "lvlm_guard", "python"} <= set(manifest["versions"])


def test_run_writes_figures_of_everybody_who_answered(finished):
    folder, _ = finished
    scored = json.loads((folder / "results.json").read_text())
    assert {one["system"] for one in scored["scores"]} == {"greedy", "pba", "vcd"}
    verdicts = {(one["system"], one["level"]): one for one in scored["verdicts"]}
    assert verdicts["rank", "all"]["kind"] == "refused"
    assert verdicts["vcd", "all"]["why"]
    assert {level for _, level in verdicts} == {"all", "object", "attribute", "relation", "captions"}
    refused = {one["system"]: one["refused"] for one in scored["outcomes"]}
    assert refused["vcd"] is None
    assert refused["rank"]["error"] == "InputError"
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert {row["measure"] for row in rows} == {one.name for one in Scenes().measures("ours")}


def test_run_again_changes_no_answer_and_loads_no_data_twice(finished, folder):
    before = {path: path.read_bytes() for path in (folder / "answers").rglob("*.jsonl")}
    asked = ("bench", "run", "scenes:count=6,captions=2", "--stack", "vcd", "--stack", "rank", *SWITCHED_OFF)
    run(*asked, "--out", folder)
    assert {path: path.read_bytes() for path in (folder / "answers").rglob("*.jsonl")} == before


def test_report_equals_the_scores_of_the_run(folder, monkeypatch):
    """From the raw answers: no model is loaded."""
    monkeypatch.setattr(loading, "load", lambda *a: pytest.fail("loaded"))
    names = ("results.json", "results.csv")
    first = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    run("bench", "report", folder)
    assert {name: (folder / name).read_bytes() for name in names} == first


def test_report_keeps_figures_of_another_parser_apart(folder, monkeypatch):
    monkeypatch.setattr(Scenes, "parsers", ("ours", "other"))
    before = (folder / "results.json").read_bytes()
    run("bench", "report", folder, "--parser", "other")
    assert (folder / "results.json").read_bytes() == before
    assert (folder / "report-other.html").exists()
    assert json.loads((folder / "results-other.json").read_text())["parsers"] == {"scenes": "other"}


def test_rescore_is_the_deprecated_name_of_report(folder, monkeypatch):
    monkeypatch.setattr(Scenes, "parsers", ("ours", "other"))
    asked = [str(folder), "--parser", "other"]
    renamed, former = (CliRunner().invoke(app, ["bench", command, *asked]) for command in ("report", "rescore"))
    assert (former.exit_code, former.stdout) == (0, renamed.stdout)
    assert "'lvlm-guard bench rescore' is deprecated; use 'lvlm-guard bench report'." in former.stderr
    assert renamed.stderr == ""
    assert "rescore" not in run("bench", "--help")


def test_the_page_is_written_beside_the_figures(folder):
    assert "report.html" in run("bench", "report", folder).replace("\n", "")
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("greedy", "pba", "vcd", "rank"))
    assert page.startswith(("<!doctype html>", "<!DOCTYPE html>"))


def test_compare_a_run_with_itself_finds_nothing(folder):
    found = json.loads(run("bench", "compare", folder, folder, "--json"))
    assert {one["system"] for one in found["pairs"]} == {"greedy", "pba", "vcd"}
    assert all(one["before"] == one["after"] and one["test"]["p"] in (1.0, None) for one in found["pairs"])
    told = run("bench", "compare", folder, folder)
    assert "scenes, vcd: changed nothing" in told
    assert "Left out: scenes, rank: 0 and 0 of" in told


def test_limit_takes_whole_pictures(tmp_path):
    everything = [option for name in CONTROLS for option in ("--without", name)]
    run("bench", "run", "scenes:count=6", "--stack", "vdd", *everything, "--limit", 7, "--out", tmp_path / "run")
    suite = json.loads((tmp_path / "run" / "manifest.json").read_text())["suites"]["scenes"]
    every = Scenes(count=6).load(None).items
    pictures = list(dict.fromkeys(item.image for item in every))[: suite["pictures"]]
    assert suite["items"] == sum(item.image in pictures for item in every) <= 7


def test_one_suite_may_be_asked_for_twice_with_other_arguments():
    found = choosing.choose_suites(
        ["scenes:count=3,split=iid", "scenes:count=3", "pope:prompt_suffix= One word, please."]
    )
    assert list(found) == ["scenes@count=3,split=iid", "scenes@count=3", "pope"]
    assert found["scenes@count=3,split=iid"].suite == Scenes("iid", 3)
    assert found["pope"].arguments == {"prompt_suffix": " One word, please."}
    with pytest.raises(InputError, match="named twice"):
        choosing.choose_suites(["scenes", "scenes"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scene"], "There is no suite 'scene'. Did you mean 'scenes'?"),
        (["scenes", "--stack", "vdc"], "Did you mean 'vcd'"),
        (["scenes", "--stack", "nowhere.toml"], "nowhere.toml"),
        (["scenes:counts=3"], "scenes: there is no argument 'counts'. Did you mean 'count'?"),
        (["scenes:count=many"], "scenes: count='many' is not possible: input should be a valid integer"),
        (["scenes:count"], "arguments are written key=value"),
        (["scenes:split=idd"], "split='idd' is not possible"),
        (["scenes:count=0"], "count must be at least 1"),
        (["scenes", "--parser", "official"], "scenes: no parser is called 'official'. Known: ours."),
        (["scenes", "--without", "sampler"], "no control is called 'sampler'. Did you mean 'sampling'?"),
        (["scenes", "--missing-pictures", "skp"], "--missing-pictures skp is not possible. Did you mean 'skip'?"),
        (["pope", "--data", "nowhere"], "--data: nowhere does not exist"),
        (["pope"], "pope needs a data folder with"),
        (["pope", "--data", "empty"], "pope: empty"),
    ],
)
def test_run_refuses_with_a_message_before_a_model_is_loaded(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(loading, "load", lambda *a: pytest.fail("loaded"))
    assert words in run_refused(monkeypatch, capsys, "bench", "run", *arguments, "--out", "run")
    assert not (tmp_path / "run").exists()


def test_run_refuses_the_folder_of_another_run(monkeypatch, capsys, folder):
    asked = ("bench", "run", "scenes:count=7,captions=2", "--stack", "vcd", *SWITCHED_OFF, "--out", folder)
    told = run_refused(monkeypatch, capsys, *asked)
    assert "holds a run with other settings" in told
    assert "systems.rank" in told


@pytest.mark.parametrize("command", ["report", "rescore"])
def test_what_is_no_run_is_refused(monkeypatch, capsys, tmp_path, command):
    assert "holds no manifest.json" in run_refused(monkeypatch, capsys, "bench", command, tmp_path)


def test_compare_refuses_other_items(monkeypatch, capsys, folder, tmp_path):
    everything = [option for name in CONTROLS[1:] for option in ("--without", name)]
    run("bench", "run", "scenes:count=2", *everything, "--out", tmp_path / "other")
    assert "other items" in run_refused(monkeypatch, capsys, "bench", "compare", folder, tmp_path / "other")
