"""What `benchmarks/evidence_ceiling.py` computes, against counts by hand."""

import json
from types import SimpleNamespace

import pytest
import torch
from lvlm_guard_evidence.head import EvidenceHead
from lvlm_guard_evidence.mixing import Mixing
from lvlm_guard_evidence.names import NamesTable
from lvlm_guard_evidence.weighing import CalibrationCase

QUESTIONS = {"habit_true": True, "habit_breaking": False}


def make_cases(half, margin, odds, count):
    """Questions whose true answers, yes and no in turn, have this margin and these log-odds."""
    cases = []
    for truth in (0, 1) * (count // 2):
        question = SimpleNamespace(is_habitual=QUESTIONS[half], truth=truth, kind="existence", options=("yes", "no"))
        halves = [torch.tensor([value, -value]) * (1 - 2 * truth) for value in (margin, odds)]
        cases.append(CalibrationCase(question, *halves))
    return cases


@pytest.fixture
def ceiling(script):
    return script("evidence_ceiling")


def test_the_ceiling_is_the_best_that_keeps_what_habit_gets_right(ceiling):
    kept, contrary = make_cases("habit_true", 1.0, 0.0, 198), make_cases("habit_true", 1.0, -3.0, 20)
    lost = [*make_cases("habit_breaking", -1.0, 0.5, 10), *make_cases("habit_breaking", -1.0, -9.0, 10)]
    model = ceiling.score([*kept, *lost], Mixing())
    assert model == (1.0, 0.0)
    found = ceiling.find_ceiling([*kept, *contrary[:2], *lost], model)
    assert found == pytest.approx((0.99, 0.5))  # two of two hundred may go, and what the picture denies stays lost
    assert ceiling.share_won(model, found) == pytest.approx(0.5)
    assert ceiling.find_ceiling([*kept, *contrary, *lost], model)[1] < 0.5
    assert ceiling.score([*kept, *lost], ceiling.EVIDENCE_ALONE) == (
        0.5,
        0.5,
    )  # no evidence says yes, right for half of the kept


def test_attributes_are_read_in_the_box(ceiling):
    head = EvidenceHead(torch.zeros(3, 2), torch.zeros(3), NamesTable(("mug",), {}), ("red", "blue"))
    scores = torch.tensor([[9.0, 5.0, 0.0], [0.0, 0.0, 5.0]])  # the mug seems to be at the first token, which is red
    places = torch.tensor([[0.5, 0.25], [0.5, 0.75]])
    assert head.read(scores, places).attribute("mug", "red") > 0
    boxed = ceiling.BoxedEvidence(head, scores, places, torch.tensor([[False, True]]))
    assert boxed.attribute("mug", "red") < 0
    nowhere = ceiling.BoxedEvidence(head, scores, places, torch.tensor([[False, False]]))
    assert nowhere.attribute("mug", "red") > 0


def test_the_command_writes_a_row_for_each_kind(ceiling, tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "LEAST", 5)
    ceiling.main(["--scenes", "24", "--out", str(tmp_path)])
    rows = {row["kind"]: row for row in json.loads((tmp_path / "evidence_ceiling.json").read_text())["rows"]}
    assert {"existence", "is_attribute", "is_side"} <= rows.keys()
    assert all(row["most_won_back"] >= 0 for row in rows.values())
    assert "| is_attribute" in (tmp_path / "evidence_ceiling.md").read_text()
