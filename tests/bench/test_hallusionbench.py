"""HallusionBench's groups, against a case worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.suites.hallusionbench import HallusionBench

DATA = Path(__file__).parent / "data" / "hallusionbench"
CAUSES = ("LH", "VI", "Mixed")
WRONG, UNSURE = "wrong", "unsure"


@pytest.fixture
def perfect():
    return [AnsweredItem(item, item.truth) for item in HallusionBench().load(DATA).items]


def changed(said, at, text):
    return [AnsweredItem(one.item, text) if place == at else one for place, one in enumerate(said)]


def scores(said, parser="ours"):
    return {measure.name: measure.value(said) for measure in HallusionBench().measures(parser)}


def test_rows_without_a_figure_have_no_picture_and_can_be_left_out():
    items = HallusionBench().load(DATA).items
    assert [item.image for item in items if item.kind == "VS"][:3] == [None, None, "VS/chart/1_1.png"]
    assert len(items) == 12
    assert len(HallusionBench(text_only=False).load(DATA).items) == 10
    assert {item.level for item in items} == {"attribute", "relation"}
    assert {item.cluster for item in items} == {"VD/illusion/0", "VS/chart/1", "VD/video/3"}


def test_all_right_is_a_hundred_in_every_group(perfect):
    official = HallusionBench().official(perfect, "ours")
    assert {name: official[name] for name in ("aAcc", "qAcc", "fAcc", "easy", "hard")} == dict.fromkeys(
        ("aAcc", "qAcc", "fAcc", "easy", "hard"), 100.0
    )
    assert {name: official[name] for name in CAUSES} == dict.fromkeys(CAUSES)


def test_one_wrong_answer_costs_its_question_and_its_figure(perfect):
    # 12 answers; 5 questions; figures: illusion 0 and 1, chart 1 and 2, video 0 and 1
    said = changed(perfect, 2, "No" if perfect[2].item.truth == "yes" else "Yes")
    official = HallusionBench().official(said, "ours")
    assert official["aAcc"] == round(100 * 11 / 12, 4)
    assert official["qAcc"] == round(100 * 4 / 5, 4)
    assert official["fAcc"] == round(100 * 5 / 6, 4)
    assert (official["easy"], official["hard"]) == (100.0, round(100 * 4 / 5, 4))
    measured = scores(said)
    assert measured["question_accuracy"] == pytest.approx(4 / 5)
    assert measured["figure_accuracy"] == pytest.approx(5 / 6)
    assert measured["accuracy"] == pytest.approx(11 / 12)


def test_not_knowing_is_right_only_where_a_missing_figure_would_tell(perfect):
    assert perfect[4].item.image is None
    unsure_without = HallusionBench().official(changed(perfect, 4, "I cannot tell"), "ours")
    unsure_with = HallusionBench().official(changed(perfect, 6, "I cannot tell"), "ours")
    assert unsure_without["aAcc"] == 100.0
    assert unsure_with["aAcc"] == round(100 * 11 / 12, 4)
    wrong_without = HallusionBench().official(changed(perfect, 4, "No"), "ours")
    assert (wrong_without["aAcc"], wrong_without["fAcc"]) == (round(100 * 11 / 12, 4), 100.0)


# places in the file: 0, 1 a figure and 2, 3 another one; 4, 5 no figure, 6, 7 its figure, 8, 9 an edited one
@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ({0: WRONG}, "VI"),
        ({0: UNSURE}, "VI"),
        ({2: WRONG}, "Mixed"),  # as on the original, where it was right
        ({2: UNSURE}, "VI"),
        ({0: WRONG, 2: WRONG}, "VI"),
        ({4: WRONG}, "LH"),
        ({4: WRONG, 6: WRONG}, "LH"),  # the same answer with and without the figure
        ({4: WRONG, 8: WRONG}, "Mixed"),  # the truth turned, so another answer
        ({4: WRONG, 6: UNSURE}, "Mixed"),
        ({4: UNSURE, 6: WRONG}, "VI"),
        ({4: UNSURE, 6: UNSURE}, "VI"),
        ({6: UNSURE}, "VI"),
        ({6: WRONG}, "VI"),  # common sense suffices here
        ({8: WRONG}, "LH"),  # against common sense, answered as without the figure
        ({6: WRONG, 8: WRONG}, "Mixed"),
    ],
)
def test_a_failed_question_has_the_cause_that_the_official_tree_gives(perfect, answers, cause):
    said = perfect
    for place, how in answers.items():
        wrong = "No" if perfect[place].item.truth == "yes" else "Yes"
        said = changed(said, place, wrong if how is WRONG else "I cannot tell")
    official = HallusionBench().official(said, "ours")
    assert {name: official[name] for name in CAUSES} == {name: 100.0 * (name == cause) for name in CAUSES}


def test_causes_are_shares_of_what_failed(perfect):
    said = changed(changed(changed(perfect, 1, "Yes"), 10, "No"), 5, "Yes")
    official = HallusionBench().official(said, "ours")
    assert [official[name] for name in CAUSES] == [33.3333, 66.6667, 0.0]
    without = [one for one in said if one.item.image is not None]
    assert [HallusionBench().official(without, "ours")[name] for name in CAUSES] == [0.0, 100.0, 0.0]


def test_nothing_asked_has_no_figures():
    assert set(HallusionBench().official([], "ours").values()) == {None}
