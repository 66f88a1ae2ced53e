"""Rows of the registry: faults are named, and every committed row is one that the command wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvlm_guard.errors import InputError
from lvlm_guard.verification.checks import Check
from lvlm_guard.verification.results import Verification, VerifiedModel
from lvlm_guard.verification.rows import LARGEST_ROW, read_row, write_row

REGISTRY = Path(__file__).parents[2] / "docs" / "reference" / "verified"
ROWS = sorted(REGISTRY.glob("*.json"))
MODEL = VerifiedModel("name", "llava", "Llava", None, "0" * 32, "float32", "cpu x86_64")
CHECKS = (
    Check("repeats", "", "pass", 0.0, 2e-4, "plain generate alone", 0.1),
    Check("effect", "vcd", "pass", 1.5, 0.02),
    Check("recompute", "vcd", "failed", 0.3, 2e-4, "why"),
    Check("rows", "vcd", "refused", says="why"),
)
VERIFICATION = Verification(CHECKS, MODEL, {"torch": "2"}, "2026-01-31")


@pytest.fixture
def row(tmp_path):
    path = tmp_path / "row.json"
    write_row(VERIFICATION, path)
    return path


def change(path, *keys, value=None, remove=False):
    """Change or remove the entry of a row that keys lead to."""
    values = json.loads(path.read_text())
    *way, last = keys
    owner = values
    for key in way:
        owner = owner[key]
    if remove:
        del owner[last]
    else:
        owner[last] = value
    path.write_text(json.dumps(values))


def test_a_row_comes_back_as_it_was_written(row):
    assert read_row(row) == VERIFICATION


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("format",), 2, "format: input should be 1, got 2"),
        (("date",), "yesterday", "date: string should match"),
        (("model", "weights"), "0123", "model.weights: string should match"),
        (("model", "name"), 7, "model.name: input should be a valid string, got 7"),
        (("model", "owner"), "me", "model.owner is no key of a row"),
        (("extra",), 1, "extra is no key of a row"),
        (("versions",), {}, "versions: dictionary should have at least 1"),
        (("checks",), [], "checks: list should have at least 1"),
        (("checks", 0, "status"), "good", "checks.0.status: input should be 'pass', 'refused', 'failed' or 'unproven'"),
        (("checks", 0, "check"), "speed", "checks.0.check: input should be 'repeats'"),
        (("checks", 0, "figure"), -1.0, "checks.0.figure: input should be greater than or equal to 0"),
        (("checks", 0, "figure"), 1.0, "checks.0 (repeats) passes with 1.0, beyond its limit 0.0002"),
        (("checks", 1, "figure"), 0.01, "checks.1 (effect) passes with 0.01, beyond its limit 0.02"),
        (("checks", 1, "figure"), None, "checks.1 (effect) passes with None"),
        (("checks", 0, "figure"), float("nan"), "checks.0.figure: input should be"),
    ],
)
def test_a_wrong_value_is_named(row, keys, value, message):
    change(row, *keys, value=value)
    with pytest.raises(InputError) as caught:
        read_row(row)
    assert message in str(caught.value)
    assert "lvlm-guard verify --out" in str(caught.value)


@pytest.mark.parametrize("keys", [("model",), ("checks",), ("model", "revision"), ("checks", 2, "says")])
def test_a_missing_key_is_named(row, keys):
    change(row, *keys, remove=True)
    with pytest.raises(InputError, match=f"{'.'.join(map(str, keys))} is missing"):
        read_row(row)


def test_a_check_that_stands_there_twice_is_named(row):
    values = json.loads(row.read_text())
    values["checks"].append(values["checks"][1])
    row.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"checks.4 \(effect\) stands there twice"):
        read_row(row)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "the file: input should be"),
        (b"{", "no JSON"),
        (b"\xff", "no text"),
        (b" " * (LARGEST_ROW + 1), "bytes"),
    ],
)
def test_another_file_is_no_row(row, content, message):
    row.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_row(row)


def test_the_line_for_an_issue_names_the_worst_first():
    assert VERIFICATION.summarize() == (
        "lvlm-guard verify: Llava (llava) name, float32 on cpu x86_64, weights 000000000000, torch 2: 2 pass, 1 refused, 1 failed "
        "(vcd: recompute failed: 0.3, limit 0.0002; vcd: rows refused)"
    )


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_every_row_of_the_registry_is_valid(path):
    row = read_row(path)
    assert row.passed or row.select("failed")
    assert path.stem == path.stem.lower()


def test_the_registry_has_the_bundled_model():
    assert "testbed" in {read_row(path).model.name for path in ROWS}
