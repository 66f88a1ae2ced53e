"""HallusionBench's groups, against a case worked out by hand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.suites.hallusionbench import HallusionBench

DATA = Path(__file__).parent / "data" / "hallusionbench"
CAUSES = ("LH", "VI", "Mixed")
READINGS = ("script", "paper")
SHARES = [f"{reading}/{cause}" for reading in READINGS for cause in CAUSES]
RATES = ("aAcc", "qAcc", "fAcc", "script/easy", "script/hard", "paper/easy", "paper/hard")
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
    assert official == dict.fromkeys(RATES, 100.0) | dict.fromkeys(SHARES)


def test_one_wrong_answer_costs_its_question_and_its_figure(perfect):
    # 12 answers; 5 questions; figures: illusion 0 and 1, chart 1 and 2, video 0 and 1
    said = changed(perfect, 2, "No" if perfect[2].item.truth == "yes" else "Yes")
    official = HallusionBench().official(said, "ours")
    assert official["aAcc"] == round(100 * 11 / 12, 4)
    assert official["qAcc"] == round(100 * 4 / 5, 4)
    assert official["fAcc"] == round(100 * 5 / 6, 4)
    assert [official[f"{reading}/easy"] for reading in READINGS] == [100.0, 100.0]
    assert [official[f"{reading}/hard"] for reading in READINGS] == [round(100 * 4 / 5, 4)] * 2
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
    assert {name: official[f"paper/{name}"] for name in CAUSES} == {name: 100.0 * (name == cause) for name in CAUSES}


def script_figures(said):
    """What `evaluation.py` computes, row by row, with grades and sameness read from yes and no."""
    rows = [
        {
            "key": one.item.extra["question"],
            "category": one.item.kind,
            "figure": one.item.extra["figure_id"],
            "visual": one.item.extra["visual_input"],
            "said": one.text.lower(),
            "grade": {one.item.truth: "1"}.get(
                one.text.lower(), "0" if one.text in ("Yes", "No", "yes", "no") else "2"
            ),
        }
        for one in said
    ]
    first = {row["key"]: row for row in rows if row["figure"] == "0"}
    counted = {"LH": 0, "VI": 0, "Mixed": 0}
    groups = {"script/easy": {}, "script/hard": {}}
    for row in rows:
        unclear_is_right = row["category"] == "VS" and row["figure"] == "0"
        right = row["grade"] == "1" or (unclear_is_right and row["grade"] == "2")
        group = groups["script/hard" if row["visual"] == "2" else "script/easy"]
        group[row["key"]] = group.get(row["key"], True) and right
        before, now = first[row["key"]]["grade"], row["grade"]
        same = row["said"] == first[row["key"]]["said"]
        if row["figure"] == "0":
            cause = {("VD", "0"): "VI", ("VD", "2"): "VI", ("VS", "0"): "LH"}.get((row["category"], now))
        elif now == "1":
            cause = None
        elif row["category"] == "VD":
            cause = "Mixed" if (before, now, same) == ("1", "0", True) else "VI"
        elif before == "0":
            cause = "LH" if now == "0" and same else "Mixed"
        else:
            cause = "LH" if (before, now, row["visual"], same) == ("1", "0", "2", True) else "VI"
        if cause:
            counted[cause] += 1
    failed = sum(counted.values())
    shares = {f"script/{name}": round(100 * n / failed, 4) if failed else None for name, n in counted.items()}
    return shares | {
        name: round(100 * sum(group.values()) / len(group), 4) if group else None for name, group in groups.items()
    }


def test_figures_called_the_scripts_are_those_of_its_arithmetic_whatever_is_answered(perfect):
    draw = random.Random(3)
    differ = dict.fromkeys(("easy", "hard", *CAUSES), 0)
    for _ in range(60):
        said = [AnsweredItem(one.item, draw.choice(("Yes", "No", "I cannot tell"))) for one in perfect]
        official = HallusionBench().official(said, "ours")
        expected = script_figures(said)
        assert {name: official[name] for name in expected} == expected
        for name in differ:
            differ[name] += official[f"script/{name}"] != official[f"paper/{name}"]
    assert all(differ.values()), "the two readings differ, or nothing was tested"


def test_a_question_with_its_own_figure_is_easy_to_the_script_and_hard_to_the_paper(perfect):
    said = changed(perfect, 6, "No")  # a chart as it was found, to a question that can be answered without it
    official = HallusionBench().official(said, "ours")
    assert {name: official[name] for name in RATES[3:]} == {
        "script/easy": 80.0,
        "script/hard": 100.0,
        "paper/easy": 100.0,
        "paper/hard": 80.0,
    }


def test_causes_are_shares_of_answers_to_the_script_and_of_groups_to_the_paper(perfect):
    said = changed(changed(perfect, 4, "No"), 6, "No")  # one group, which failed twice through language
    said = changed(said, 0, "No")  # another one, once through vision
    official = HallusionBench().official(said, "ours")
    assert [official[f"script/{name}"] for name in CAUSES] == [66.6667, 33.3333, 0.0]
    assert [official[f"paper/{name}"] for name in CAUSES] == [50.0, 50.0, 0.0]


def test_causes_are_shares_of_what_failed(perfect):
    said = changed(changed(changed(perfect, 1, "Yes"), 10, "No"), 5, "Yes")
    official = HallusionBench().official(said, "ours")
    for reading in READINGS:
        assert [official[f"{reading}/{name}"] for name in CAUSES] == [33.3333, 66.6667, 0.0]
    without = [one for one in said if one.item.image is not None]
    unsupplemented = HallusionBench().official(without, "ours")
    assert [unsupplemented[f"paper/{name}"] for name in CAUSES] == [0.0, 100.0, 0.0]


def test_nothing_asked_has_no_figures():
    assert set(HallusionBench().official([], "ours").values()) == {None}
