"""`lvlm-guard diagnose`: what it writes and says, and what it refuses."""

from __future__ import annotations

import csv
import json
import sys

import pytest
from typer.testing import CliRunner

from lvlm_guard.cli import app, main
from lvlm_guard.diagnosis import Diagnosis
from lvlm_guard.diagnosis.model.checks import CHECKS
from lvlm_guard.diagnosis.model.words import MEANINGS, describe, write_rows
from lvlm_guard.diagnosis.report.model_page import render_model
from lvlm_guard.diagnosis.verdict import Culprit


def refuse(monkeypatch, capsys, *arguments):
    """What main prints when the library refuses."""
    monkeypatch.setattr(sys, "argv", ["lvlm-guard", "diagnose", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_model_without_a_profile(tmp_path):
    out = tmp_path / "diagnosis"
    result = CliRunner().invoke(app, ["diagnose", "model", "--model", "testbed", "--items", "2", "--out", str(out)])
    assert result.exit_code == 0, result.output
    diagnosis = Diagnosis.from_dict(json.loads((out / "diagnosis.json").read_text(encoding="utf-8")))
    rows = list(csv.DictReader((out / "components.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["component"] for row in rows if row["gain"]].count("head") == 16
    assert describe(diagnosis) in result.output
    assert result.stdout.splitlines()[-1] == str(out / "diagnosis.html")
    assert (out / "diagnosis.html").read_text(encoding="utf-8") == render_model(diagnosis)
    assert (diagnosis.evidence["model"], diagnosis.evidence["split"]) == ("testbed", "scenes")
    assert set(diagnosis.evidence["checks"]) == set(CHECKS)
    assert "Not judged: profile" in result.output
    assert "Cost: " in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "nowhere.safetensors"), "There is no artefact"),
        (("--suite", "scene"), "scenes"),
        (("--suite", "scenes:count=2", "--items", "500"), "500 are needed"),
        (("--suite", "pope"), "pope"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_and_leaves_no_folder(monkeypatch, capsys, tmp_path, arguments, message):
    out = tmp_path / "diagnosis"
    error = refuse(monkeypatch, capsys, "model", "--model", "testbed", "--out", out, *arguments)
    assert message in error
    assert not out.exists()


def test_a_small_or_present_profile_is_refused(monkeypatch, capsys, tmp_path):
    out = tmp_path / "profile.safetensors"
    error = refuse(monkeypatch, capsys, "profile", "--model", "testbed", "--out", out, "--items", "48")
    assert "at least 600" in error
    assert not out.exists()
    out.write_text("mine")
    error = refuse(monkeypatch, capsys, "profile", "--model", "testbed", "--out", out)
    assert "--force" in error
    assert out.read_text() == "mine"


def test_every_component_has_words():
    for name in MEANINGS:
        text = describe(Diagnosis(Culprit(name, "none"), partial=("nothing: of note.",)))
        assert MEANINGS[name] in text
        assert text.endswith("Not judged: nothing: of note.")


def test_rows_hold_scores_checks_and_gains():
    evidence = {
        "k": 3.0, "scores": {"mlp.1": 4.5, "head.0.1": 1.0}, "failed_checks": {"residual.1": None},
        "knock_out": {"head.0.1": {"gain": 0.1, "way": "zeroed"}},
    }  # fmt: skip
    text = write_rows(Diagnosis(Culprit("mlp", "decoder", 1), evidence=evidence))
    assert text.splitlines() == [
        "component,layer,head,score,threshold,failed_check,gain",
        "head,0,1,1.0,3.0,,0.1",
        "mlp,1,,4.5,3.0,,",
        "residual,1,,,,unmeasured,",
    ]
