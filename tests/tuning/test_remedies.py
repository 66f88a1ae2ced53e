"""Remedies are measured and tried, never looked up: rates by level and margin, a control beside them, and no cure invented."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from planted import Planted, Simulated

from lvlm_guard.bench.catalogue import SuiteCatalogue, SuiteOffer
from lvlm_guard.errors import InputError
from lvlm_guard.tuning.remedies import FITTED_BIAS, NO_MARGIN, CaseRow, RemedyTable, read_run
from lvlm_guard.tuning.remedy_trial import Attempt, RemedyTrial


def rows(level, margins, right, **cures):
    """Items of a level: `cures` says for each remedy which of them are right afterwards."""
    return [
        CaseRow(
            f"{level}{number}", f"p{number}", "is there a cup ?", level, "is", margin, "Yes", is_right,
            {name: ("No" if after[number] != is_right else "Yes", after[number]) for name, after in cures.items()},
        )
        for number, (margin, is_right) in enumerate(zip(margins, right, strict=True))
    ]  # fmt: skip


REMEDIES = {name: [{"name": name, "params": {}}] for name in ("vdd", "vcd")}
UNSURE, SURE = [0.1] * 6, [5.0] * 6


@pytest.fixture
def table():
    wrong = [False] * 6
    return RemedyTable(
        {"id": "m", "class": "C", "config": "c", "weights": "w"},
        {"suite": "planted"},
        REMEDIES,
        [
            *rows("attribute", UNSURE, wrong, vdd=[True] * 5 + [False], vcd=wrong, bias=wrong),
            *rows("attribute", SURE, wrong, vdd=wrong, vcd=[True] * 2 + wrong[:4], bias=wrong),
            *rows("object", UNSURE, wrong, vdd=[True] * 2 + wrong[:4], vcd=wrong, bias=[True] * 6),
            *rows("object", [None] * 3, [True] * 3, vdd=[True, True, False], vcd=[True] * 3, bias=[True] * 3),
        ],
    )


def test_the_remedy_is_chosen_by_level_and_margin(table):
    assert [proposal.name for proposal in table.propose("attribute", 0.2)] == ["vdd", "vcd"]
    assert [proposal.name for proposal in table.propose("attribute", 6.0)] == ["vcd", "vdd"]
    best = table.propose("attribute", 0.2, 1)[0].cures
    assert (best.wrong, best.cured) == (6, 5)


def test_few_answers_draw_the_rate_towards_the_remedys_own(table):
    overall = 7 / 18
    cell = table.cell("attribute", table.find_bin(0.2))
    assert table.measure("vdd", cell).rate == pytest.approx((5 + 4 * overall) / (6 + 4))
    assert table.measure("vdd", []).rate == pytest.approx(overall)


def test_what_leaning_to_an_answer_cures_as_well_is_said(table):
    (best, *_) = table.propose("object", 0.2)
    assert not best.beats_control
    assert best.control.cured == 6
    assert table.propose("attribute", 0.2)[0].beats_control


def test_what_a_remedy_breaks_is_counted(table):
    cures = table.measure("vdd", table.cell("object", NO_MARGIN))
    assert (cures.wrong, cures.cured, cures.right, cures.broken) == (0, 0, 3, 1)


def test_neighbours_are_those_nearest_in_margin(table):
    assert {row.margin for row in table.find_neighbours("attribute", 4.0, 6)} == {5.0}
    assert {row.margin for row in table.find_neighbours("object", None, 6)} == {None}


def attempt(table, after, *, level="attribute", margin=0.2, name="vdd", before="Yes"):
    proposal = next(one for one in table.propose(level, margin) if one.name == name)
    return Attempt(proposal, before, after, table.find_neighbours(level, margin, 6))


def test_a_remedy_that_changes_nothing_or_that_leaning_equals_does_not_help(table):
    assert attempt(table, "No").helps
    assert not attempt(table, " yes").helps
    assert not attempt(table, "No", level="object").helps
    assert not attempt(table, "No", name="vcd").helps
    refused = dataclasses.replace(attempt(table, ""), refusal="StrategyRefused: no image")
    assert not refused.helps


def test_no_remedy_helped_where_none_does(table):
    helping, useless = attempt(table, "No"), attempt(table, "Yes")
    assert RemedyTrial("Yes", 0.2, [useless, helping]).best is helping
    assert RemedyTrial("Yes", 0.2, [useless]).best is None


def test_a_table_is_read_as_it_was_written(table, tmp_path):
    table.save(tmp_path / "t.json")
    assert RemedyTable.read(tmp_path / "t.json") == table


def test_a_table_of_another_model_is_refused(table, tmp_path, monkeypatch):
    table.save(tmp_path / "t.json")
    monkeypatch.setattr(
        "lvlm_guard.tuning.remedies.model_identity", lambda _: {"class": "C", "config": "c", "weights": "x"}
    )
    with pytest.raises(InputError, match="another model"):
        RemedyTable.read(tmp_path / "t.json", SimpleNamespace())


@pytest.mark.parametrize("content", ["", "{}", "[1]", json.dumps({"rows": [{"id": 1}]}), "\0"])
def test_a_file_that_holds_no_table_is_named(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(InputError, match=r"t\.json holds no table"):
        RemedyTable.read(tmp_path / "t.json")


def test_a_level_that_was_not_measured_is_refused(table):
    with pytest.raises(InputError, match="attribute, object"):
        table.propose("relation", 0.2)


def test_the_control_is_no_remedy(table):
    assert FITTED_BIAS not in [proposal.name for proposal in table.propose("object", 0.2, 9)]


def test_a_run_is_read_without_a_model(monkeypatch):
    monkeypatch.setattr(SuiteCatalogue, "find", lambda _, name: SuiteOffer(Planted, "tests"))
    told = {
        "greedy": (lambda seen: seen.plain, lambda seen: seen.caption),
        "sound": (lambda seen: seen.plain + 1.5 * seen.evidence, lambda seen: seen.sure),
        "no": (lambda seen: -1.0, lambda seen: seen.caption),
        "swap": (lambda seen: seen.other, lambda seen: seen.caption),
    }
    roles = {"greedy": "control", "swap": "control", "sound": "stack", "no": "stack"}
    clusters = {f"p{number}" for number in range(60)}
    read = read_run(Simulated(told, roles), "planted", clusters)
    assert set(read.remedies) == {"sound", "no"}
    assert {row.cluster for row in read.rows} == clusters
    assert set(read.rows[0].answers) == {"sound", "no", FITTED_BIAS}
    sound, never = (read.measure(name, read.rows) for name in ("sound", "no"))
    assert sound.cured > 3 * sound.broken
    assert never.broken > never.cured
    assert read.propose("object", 0.1)[0].name == "sound"


def test_a_run_without_all_plain_answers_is_refused(monkeypatch):
    told = {"sound": (lambda seen: 1.0, lambda seen: seen.sure)}
    record = Simulated(told, {"sound": "stack"})
    monkeypatch.setattr(Simulated, "folder", "somewhere", raising=False)
    with pytest.raises(InputError, match="plain generate has not answered"):
        read_run(record, "planted", {"p1"})
