"""What a suite gives away without its pictures, and which errors that explains."""

from __future__ import annotations

import json

import pytest
from command_line import run_command, run_refused

from lvlm_guard.bench.auditing import audit as auditing
from lvlm_guard.bench.auditing.rules import build_rules, fit_texts, read_truth
from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.scoring.measures import Measure, each
from lvlm_guard.bench.scoring.rightness import is_right
from lvlm_guard.testbed.suite import Scenes


def build(number, truth, *, habit=None, prompt="is there a cup ?", kind="is", level="object"):
    return Item(f"{number}", f"picture{number}", prompt, truth, level, kind, extra={"habit": habit})


def right(answer):
    return float(answer.text.strip().lower() == answer.item.truth), 1.0


ACCURACY = Measure("accuracy", "object", "accuracy", each(right), binary=True)


def test_a_suite_of_one_answer_is_won_by_always_saying_it():
    items = [build(number, "yes" if number % 10 else "no") for number in range(60)]
    found = auditing.audit_items(items, [ACCURACY])
    (balance,) = found.balances
    assert (balance.frequent, balance.share, balance.habitual) == ("yes", 0.9, None)
    scores = {(score.rule, score.level): score for score in found.rules}
    assert scores["always yes", "all"].accuracy.value == pytest.approx(0.9)
    assert scores["always yes", "all"].chance == 0.5
    assert found.headline["always no"] == pytest.approx(0.1)
    assert "habit" not in found.headline


def test_a_text_that_gives_its_answer_away_is_named_and_learnt_from_other_pictures():
    items = [
        build(number, truth, prompt=f"is the {name} red ?", kind="colour", level="attribute")
        for number, (name, truth) in enumerate([("cup", "yes"), ("sky", "no")] * 30)
    ]
    found = auditing.audit_items(items, [])
    assert [(text.prompt, text.answer, text.questions, text.share) for text in found.texts] == [
        ("is the cup red ?", "yes", 30, 1.0),
        ("is the sky red ?", "no", 30, 1.0),
    ]
    assert next(score for score in found.rules if score.rule == "text").accuracy.value == 1.0


def test_a_fitted_rule_never_learns_of_the_picture_that_it_answers():
    items = [build(number, truth, prompt=f"question {number} ?") for number, truth in enumerate(["yes", "no"] * 40)]
    rule = fit_texts(items)
    hits = sum(rule(item) == read_truth(item) for item in items) / len(items)
    assert hits < 0.6  # with its own picture in the table, every text would be known


@pytest.mark.parametrize("name", ["always yes", "always no", "habit", "against habit", "text"])
def test_no_rule_wins_the_bundled_questions(name):
    suite = Scenes(count=60, captions=0)
    items = suite.load(None).items
    found = auditing.audit_items(items, suite.measures("ours"))
    score = next(score for score in found.rules if (score.rule, score.level) == (name, "all"))
    assert score.accuracy.value <= 0.6
    if name in found.headline:
        assert found.headline[name] == pytest.approx(0.5)


def test_errors_that_habit_explains_are_those_beyond_the_rate_where_it_is_right():
    items = [
        *(build(number, "yes", habit="yes") for number in range(20)),
        *(build(number, "no", habit="yes") for number in range(20, 40)),
    ]
    wrong = {0, 1, *range(20, 30)}
    answers = [
        AnsweredItem(item, {"yes": "No", "no": "Yes"}[item.truth] if number in wrong else item.truth)
        for number, item in enumerate(items)
    ]
    explained = {(one.cause, one.level): one for one in auditing.explain_errors(answers, [ACCURACY])}
    habit = explained[auditing.HABIT, "all"]
    assert (habit.errors, habit.against, habit.along) == (12, 0.5, 0.1)
    assert habit.explained == pytest.approx(8.0)
    assert habit.share == pytest.approx(8 / 12)
    assert explained[auditing.NO, "all"].explained == 0.0
    assert explained[auditing.YES, "all"].explained == pytest.approx(8.0)


def test_errors_spread_evenly_are_explained_by_nothing():
    items = [build(number, "yes" if number % 2 else "no", habit="yes") for number in range(40)]
    answers = [
        AnsweredItem(item, {"yes": "No", "no": "Yes"}[item.truth] if number % 10 < 2 else item.truth)
        for number, item in enumerate(items)
    ]
    assert [one.explained for one in auditing.explain_errors(answers, [ACCURACY])] == [0.0] * len(
        auditing.explain_errors(answers, [ACCURACY])
    )


def test_every_rule_ignores_the_truth_of_the_item_it_answers():
    items = [build(number, truth, habit="yes") for number, truth in enumerate(["yes", "no"] * 30)]
    rules = build_rules(items)
    for item in items:
        turned = build(item.id, {"yes": "no", "no": "yes"}[item.truth], habit="yes")
        assert {name: rule(item) for name, rule in rules.items()} == {
            name: rule(turned) for name, rule in rules.items()
        }


def test_an_answer_is_judged_by_the_first_measure_that_counts_it_alone():
    chair = Measure(
        "chair", "object", "", each(lambda answer: (answer.text.count("x"), 2.0) if answer.item.kind == "caption" else None),
        higher_is_better=False,
    )  # fmt: skip
    yes, caption = build(0, "yes"), build(1, ["cup"], kind="caption")
    assert is_right(AnsweredItem(yes, "yes"), [chair, ACCURACY]) is True
    assert is_right(AnsweredItem(yes, "no"), [chair, ACCURACY]) is False
    assert is_right(AnsweredItem(caption, "x"), [chair]) is False
    assert is_right(AnsweredItem(caption, ""), [chair]) is True
    assert is_right(AnsweredItem(yes, "yes"), [chair]) is None


def test_the_command_prints_all_of_it():
    printed = run_command("bench", "audit", "scenes:count=12", columns=160)
    for words in ("Rules that never look", "against habit", "as habit says"):
        assert words in printed
    figures = json.loads(run_command("bench", "audit", "scenes:count=12", "--json"))
    assert {score["rule"] for score in figures["rules"]} >= {"habit", "text"}


def test_a_run_of_another_suite_is_refused(monkeypatch, capsys, tmp_path):
    message = run_refused(monkeypatch, capsys, "bench", "audit", "scenes:count=3", "--run", tmp_path)
    assert str(tmp_path) in message
