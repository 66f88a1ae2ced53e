"""Discovery of fitters: those of the bundled families, of outside distributions, and those that cannot be registered."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
from command_line import run_refused
from typer.testing import CliRunner

from lvlm_guard import Artefact, GuardWarning, InputError, fitting, hookimpl, testbed
from lvlm_guard.cli import app
from lvlm_guard.fitting import Fitted, Fitter
from lvlm_guard.host.fitters import discover_fitters, fitter_catalogue
from lvlm_guard.host.plugins import catalogue, discover

HAZE = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lvlm_guard import hookimpl


@dataclass(frozen=True)
class Haze:
    name: ClassVar[str] = "haze"

    artefact: Path


@hookimpl
def register_strategies(register):
    register(Haze)


@hookimpl
def register_fitters(register):
    from lvlm_guard.fitting import Fitted, Fitter, compute_hidden_states, encode_answer

    def fit(model, processor, demonstrations, track):
        lengths = []
        for demonstration in track(demonstrations):
            batch, length = encode_answer(model, processor, demonstration, demonstration.correct)
            lengths.append(compute_hidden_states(model, batch)[:, -length:].mean((1, 2)))
        return Fitted({"means": sum(lengths)}, {"pictures": len(lengths)})

    register(Fitter("haze", fit))
"""


def test_a_profile_is_no_fit_and_its_command_is_named(monkeypatch, capsys, tmp_path):
    out = tmp_path / "profile.safetensors"
    asked = ("fit", "profile", "--model", "testbed", "--data", "testbed", "--out", out)
    assert "lvlm-guard diagnose profile --model MODEL --out FILE" in run_refused(monkeypatch, capsys, *asked)
    assert not out.exists()


def fit_nothing(model, processor, demonstrations, track):
    return Fitted({})


@dataclass(frozen=True)
class Mist:
    name: ClassVar[str] = "mist"


@pytest.fixture
def haze(tmp_path, monkeypatch):
    """Install an outside distribution with a strategy and its fitter."""
    site = tmp_path / "site"
    metadata = site / "lvlm_guard_haze-0.1.dist-info"
    metadata.mkdir(parents=True)
    (site / "lvlm_guard_haze.py").write_text(HAZE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lvlm-guard-haze\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("[lvlm_guard]\nhaze = lvlm_guard_haze\n")
    monkeypatch.syspath_prepend(site)
    caches = (catalogue, fitter_catalogue)
    for cached in caches:
        cached.cache_clear()
    yield
    sys.modules.pop("lvlm_guard_haze", None)
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def offering(monkeypatch):
    """Put a module that offers the strategy `mist` into reach of entry points; returns its entry point."""

    def add(register_fitters, name="lvlm_guard_mist"):
        module = types.ModuleType(name)
        module.register_strategies = hookimpl(lambda register: register(Mist))
        module.register_fitters = register_fitters
        monkeypatch.setitem(sys.modules, name, module)
        return EntryPoint(name=name, value=name, group="lvlm_guard")

    return add


def run(*arguments):
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


def test_the_bundled_fitters_are_listed_with_their_distribution():
    result = run("--list")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line for line in lines if line[1] == "lvlm-guard"] == [
        ["adhh", "lvlm-guard"],
        ["nullu", "lvlm-guard"],
        ["patch_evidence", "lvlm-guard"],
        ["revise", "lvlm-guard"],
        ["vti", "lvlm-guard"],
    ]


def test_the_fitter_of_an_outside_distribution_is_listed_and_fits(haze, tmp_path):
    assert ["haze", "lvlm-guard-haze"] in [line.split() for line in run("--list").stdout.splitlines()]
    out = tmp_path / "means"
    result = run("haze", "--model", "testbed", "--data", "testbed", "--count", 3, "--out", out)
    assert result.exit_code == 0, result.output
    assert "fit haze: 100%" in result.stderr
    artefact = Artefact.load(out, "haze", testbed.load()[0].config)
    assert artefact["means"].shape == (8,)
    assert bool((artefact["means"] != 0).all())
    assert artefact.manifest["settings"] == {"demonstrations": 3, "pictures": 3}


def test_an_unknown_fitter_gets_the_nearest_and_all(haze):
    with pytest.raises(
        InputError, match=r"'hase'\. Did you mean 'haze'\? Known: adhh, haze, nullu, patch_evidence, revise, vti\."
    ):
        fitter_catalogue().find("hase")


def discovered(*points):
    return discover_fitters(points, discover(points))


def test_fitters_that_fail_while_they_register_are_reported_and_the_others_stay(offering):
    def failing(register):
        register(Fitter("mist", fit_nothing))
        raise RuntimeError("no licence")

    steering = EntryPoint(name="steering", value="lvlm_guard_steering", group="lvlm_guard")
    points = [offering(hookimpl(failing)), steering]
    strategies = discover(points)
    with pytest.warns(GuardWarning, match=r"set of fitters 'lvlm_guard_mist' of .* was skipped: .*no licence"):
        fitters = discover_fitters(points, strategies)
    assert "mist" in strategies.offers
    assert sorted(fitters.offers) == ["nullu", "vti"]
    with pytest.raises(InputError, match=r"nothing to fit for 'mist'.*Not loaded: .*no licence"):
        fitters.find("mist")


@pytest.mark.parametrize(
    ("fitter", "reason"),
    [
        (fit_nothing, "register a Fitter of lvlm_guard.fitting"),
        (Fitter("mits", fit_nothing), "'mits', but no strategy of that name. Did you mean 'mist'"),
        (Fitter("vti", fit_nothing), "'vti', but no strategy of that name"),
        (Fitter("mist", lambda model, processor: Fitted({})), r"fit\(model, processor, data, track\)"),
        (Fitter("mist", None), r"fit\(model, processor, data, track\)"),
    ],
)
def test_a_fitter_that_could_not_run_is_refused(offering, fitter, reason):
    with pytest.warns(GuardWarning, match=reason):
        fitters = discovered(offering(hookimpl(lambda register: register(fitter))))
    assert list(fitters) == []
    assert len(fitters.broken) == 1


def test_a_strategy_has_one_fitter(offering):
    def twice(register):
        register(Fitter("mist", fit_nothing))
        register(Fitter("mist", lambda *arguments: Fitted({})))

    with pytest.warns(GuardWarning, match="two fitters for 'mist'"):
        assert list(discovered(offering(hookimpl(twice)))) == []


def test_a_hook_without_its_marker_is_reported(offering):
    with pytest.warns(GuardWarning, match="register_fitters is a hook without its marker"):
        assert list(discovered(offering(lambda register: register(Fitter("mist", fit_nothing))))) == []


def test_a_plugin_that_cannot_be_imported_is_reported_once():
    absent = [EntryPoint(name="absent", value="no_such_package_anywhere", group="lvlm_guard")]
    with pytest.warns(GuardWarning, match="'absent'"):
        strategies = discover(absent)
    fitters = discover_fitters(absent, strategies)  # a warning would be an error
    assert fitters.broken == strategies.broken


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("encode", "encode_answer"),
        ("encode_all", "encode_prompts"),
        ("hidden_states", "compute_hidden_states"),
        ("watching", "record_outputs"),
    ],
)
def test_old_names_of_fitting_work_and_warn(old, new):
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(fitting, old) is getattr(fitting, new)
    assert old not in fitting.__all__
