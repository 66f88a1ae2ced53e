"""`lvlm-guard testbed` and the page of `lvlm-guard demo`."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from lvlm_guard.cli import app, demonstration
from lvlm_guard.errors import InputError
from lvlm_guard.testbed import train


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
        (["--out", "sheet.jpg"], "sheet.png"),
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
    assert plans[0] == train.Plan(out=plans[0].out, seed=3, minutes=2.0, processes=1)
    assert plans[1] == train.Plan(out=plans[0].out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cuda"], "device must be 'cpu', got 'cuda'"),
        (["--minutes", 0], "minutes must be more than 0"),
        (["--minutes", "nan"], "minutes must be more than 0"),
        (["--seed", -1], "seed must not be negative"),
    ],
)
def test_train_refuses_with_a_message(monkeypatch, arguments, words):
    monkeypatch.setattr(train, "run", lambda plan: pytest.fail("trained"))
    assert words in refused("testbed", "train", "--out", "new", *arguments)


def test_train_says_how_long_and_that_it_resumes():
    told = " ".join(run("testbed", "train", "--help").split())
    assert "30 minutes" in told
    assert "resumes" in told


def test_demo_writes_its_page(tmp_path):
    assert "demo.html" in run("demo", "--scenes", 2)
    assert "<!DOCTYPE html>" in (tmp_path / "demo.html").read_text(encoding="utf-8")[:20]
    assert [one.name for one in tmp_path.iterdir()] == ["demo.html"]


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
