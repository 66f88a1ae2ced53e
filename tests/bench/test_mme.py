"""MME's folders and scores, against a case worked out by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.suites.mme import Mme

DATA = Path(__file__).parent / "data" / "mme"
PERFECT = ["Yes", "No"] * 8


def answered(texts):
    return [AnsweredItem(item, text) for item, text in zip(Mme().load(DATA).items, texts, strict=True)]


def test_both_layouts_are_read_and_levels_follow_the_task():
    items = Mme().load(DATA).items
    assert len(items) == 16
    assert {item.kind: item.level for item in items} == {
        "existence": "object", "count": "attribute", "position": "relation", "color": "attribute",
    }  # fmt: skip
    assert items[0].image == "existence/000000000300.jpg"
    assert items[-1].image == "color/images/000000000301.jpg"
    assert items[0].prompt == "Is there a kettle in this image? Please answer yes or no."


def test_a_score_is_accuracy_plus_pictures_with_both_right():
    said = answered(["Yes", "No", "Yes", "Yes", *PERFECT[4:]])  # one of four existence answers is wrong
    scores = {measure.name: measure.value(said) for measure in Mme().measures("official")}
    assert scores["score_existence"] == pytest.approx(75 + 50)
    assert scores["score_count"] == pytest.approx(200)
    assert scores["score"] == pytest.approx(725)
    official = Mme().official(said, "official")
    assert official["existence"] == pytest.approx(125)
    assert official["total"] == pytest.approx(725)


def test_saying_yes_always_scores_fifty_a_task():
    said = answered(["Yes"] * 16)
    assert Mme().official(said, "official")["total"] == pytest.approx(200)
    assert Mme().measures("official")[0].value(said) == pytest.approx(200)


def test_a_picture_with_one_answer_stops_the_official_tool():
    official = Mme().official(answered(PERFECT)[1:], "official")
    assert (official["existence"], official["total"]) == (None, None)
    assert official["count"] == pytest.approx(200)


def test_the_official_parser_and_lmms_evals_differ_on_single_letters():
    said = answered(["y", "n"] * 8)
    assert Mme().official(said, "official")["total"] == 0
    assert Mme().official(said, "lmms_eval")["total"] == pytest.approx(800)


def test_a_broken_file_is_a_problem_and_the_rest_is_read(tmp_path):
    shutil.copytree(DATA, tmp_path / "mme")
    (tmp_path / "mme" / "count" / "000000000300.txt").write_text("no tab here\nIs it?\tPerhaps\n", encoding="utf-8")
    loaded = Mme().load(tmp_path / "mme")
    assert len(loaded.items) == 14
    assert [problem.file for problem in loaded.problems] == ["count/000000000300.txt"]
