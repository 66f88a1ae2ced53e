"""What a diagnosis says: the published schema, and values that break it."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import get_args

import pytest
from packaging.version import Version

from lvlm_guard.diagnosis import Culprit, Diagnosis, ProfileFacts
from lvlm_guard.diagnosis.verdict import LEVELS, SCHEMA, Level, Stage, write_schema
from lvlm_guard.errors import InputError

FULL = Diagnosis(
    Culprit("head", "decoder", 3, 1, 5.5, 3.0),
    Culprit("mlp", "decoder", 4, None, 3.5, 3.0),
    {"items": 24, "scores": {"head.3.1": 5.5}},
    ProfileFacts("ab" * 32, 624, 26),
    ("attention: layer 2 has none.",),
    (4, 9),
)


@pytest.mark.skipif(Version(version("pydantic")) < Version("2.11"), reason="older pydantic writes schemas otherwise")
def test_the_published_schema_is_that_of_the_code():
    assert SCHEMA.read_text(encoding="utf-8") == write_schema()


def test_keys_are_those_of_the_schema():
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert (
        set(FULL.to_dict()) == set(schema["required"]) == {"span", "level", "verdict", "evidence", "profile", "partial"}
    )
    verdict = {"component", "layer", "head", "stage", "score", "threshold", "runner_up"}
    assert set(FULL.to_dict()["verdict"]) == set(schema["$defs"]["Verdict"]["required"]) == verdict
    assert set(schema["$defs"]["Profile"]["required"]) == {"sha", "items", "batteries"}


@pytest.mark.parametrize("diagnosis", [FULL, Diagnosis(Culprit("none", "none"))])
def test_what_is_written_is_read_again(diagnosis):
    assert Diagnosis.from_dict(json.loads(diagnosis.to_json())) == diagnosis
    assert diagnosis.to_json() == Diagnosis.from_dict(diagnosis.to_dict()).to_json()


def test_every_stage_has_a_level():
    assert set(LEVELS) == set(get_args(Stage))
    assert set(LEVELS.values()) == set(get_args(Level))
    assert Diagnosis(Culprit("prior", "prior")).level == "data"
    assert Diagnosis(Culprit("pixels", "input")).level == "inference"
    assert FULL.level == "model"


def changed(**changes):
    return {**FULL.to_dict(), **changes}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        (None, "the whole"),
        (changed(level="moon"), "level"),
        (changed(partial="all"), "partial"),
        (changed(verdict={**FULL.to_dict()["verdict"], "stage": "moon"}), "verdict.stage"),
        (changed(verdict={**FULL.to_dict()["verdict"], "score": float("nan")}), "verdict.score"),
        (changed(more=1), "more"),
        ({name: value for name, value in FULL.to_dict().items() if name != "evidence"}, "evidence"),
    ],
)
def test_what_breaks_the_schema_is_refused_by_its_place(values, place):
    with pytest.raises(InputError, match=place):
        Diagnosis.from_dict(values)


def test_a_level_that_is_not_that_of_the_stage_is_refused():
    with pytest.raises(InputError, match="is of level model, not 'data'"):
        Diagnosis.from_dict(changed(level="data"))


def test_evidence_that_json_does_not_hold_is_refused():
    with pytest.raises(InputError, match="JSON does not"):
        Diagnosis(Culprit("none", "none"), evidence={"x": float("inf")}).to_json()
