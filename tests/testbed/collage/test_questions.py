"""Questions about collages cannot be answered from their words, whatever one has learnt of words."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from lvlm_guard.bench.items import LEVELS, AnsweredItem, Item
from lvlm_guard.testbed.collage.suite import SPLITS, Collage
from lvlm_guard.testbed.collage.world.habits import habits
from lvlm_guard.testbed.collage.world.lessons import draw_questions
from lvlm_guard.testbed.collage.world.questions import (
    ask_colour,
    ask_is_size,
    ask_number,
    ask_relation,
    balanced_questions,
)
from lvlm_guard.testbed.collage.world.splits import scene, twins
from lvlm_guard.testbed.collage.world.things import COLOURS, NAMES, NUMBERS
from lvlm_guard.testbed.world.questions import NEGATIVES, Question

OPPOSITE = {"yes": "no", "no": "yes", "left": "right", "right": "left", "above": "below", "below": "above"}
OPEN = {"colour", "number"}
HEADLINES = ("habit_balanced", *(f"habit_balanced_{level}" for level in LEVELS))


@pytest.fixture(scope="module", params=SPLITS)
def asked(request: pytest.FixtureRequest) -> list[Item]:
    items = []
    suite = Collage(request.param, count=60)
    for number in range(suite.count):
        items += list(suite._question_items(number))
    return items


def habitual(item: Item) -> bool:
    return item.truth == item.extra["habit"]


def test_every_question_has_a_habit_and_each_level_is_asked_about(asked: list[Item]) -> None:
    assert all(item.extra["habit"] for item in asked)
    assert {item.level for item in asked} == set(LEVELS)
    assert {item.extra["negative"] for item in asked} == {None, *NEGATIVES}


def test_as_many_truths_agree_with_habit_as_do_not_in_every_cell(asked: list[Item]) -> None:
    cells = Counter((item.kind, item.truth, habitual(item)) for item in asked if item.kind not in OPEN)
    assert all(cells[kind, truth, True] == cells[kind, truth, False] for kind, truth, _ in cells)
    assert all(cells[kind, truth, half] == cells[kind, OPPOSITE[truth], half] for kind, truth, half in cells)
    for kind in OPEN:
        halves = Counter(habitual(item) for item in asked if item.kind == kind)
        assert halves[True] == halves[False] > 0


def test_every_text_is_asked_of_both_twins_with_different_truths(asked: list[Item]) -> None:
    truths = defaultdict(list)
    for item in asked:
        truths[item.cluster, item.prompt].append(item)
    for both in truths.values():
        one, other = both
        assert one.truth != other.truth
        assert one.image != other.image
        assert habitual(one) != habitual(other) or one.kind == "existence"


@pytest.mark.parametrize("blind", ["habit", "opposite", "yes", "no"])
def test_no_answer_without_looking_wins(asked: list[Item], blind: str) -> None:
    said = {"habit": lambda item: item.extra["habit"], "opposite": opposite}
    words = said.get(blind, lambda item: blind if item.truth in ("yes", "no") else item.extra["habit"])
    answers = [AnsweredItem(item, words(item)) for item in asked if item.kind not in OPEN]
    values = {one.name: one.value(answers) for one in Collage().measures("ours")}
    assert {values[name] for name in HEADLINES} == {0.5}


def opposite(item: Item) -> str:
    return OPPOSITE[item.extra["habit"]]


def test_who_sees_is_right(asked: list[Item]) -> None:
    values = {one.name: one.value([AnsweredItem(i, i.truth) for i in asked]) for one in Collage().measures("ours")}
    named = [name for name in values if name.startswith(("habit_", "balanced_", "accuracy"))]
    assert len(named) > 20
    assert {values[name] for name in named if name != "habit_balanced_recall"} - {None} == {1.0}


def test_the_truths_are_those_of_the_scenes() -> None:
    for number in range(60):
        for drawn, question in balanced_questions(twins("iid", number)):
            assert question.answer == look(drawn, question), (drawn, question)


def look(drawn, question: Question) -> str:
    """Answer from the facts, on a way of its own."""
    group = next((one for one in drawn.groups if one.name == question.subject), None)
    text = question.text
    if question.kind == "existence":
        return "yes" if group else "no"
    assert group is not None
    if question.kind in ("colour", "is_colour"):
        asked = next((colour for colour in COLOURS if f" {colour}?" in text), None)
        return group.colour if asked is None else "yes" if asked == group.colour else "no"
    if question.kind in ("number", "is_number"):
        asked = next((word for word in NUMBERS if f" exactly {word} " in text), None)
        return (
            NUMBERS[len(group.copies) - 1]
            if asked is None
            else "yes"
            if NUMBERS[len(group.copies) - 1] == asked
            else "no"
        )
    if question.kind == "is_size":
        is_big = group.copies[0].side > 70
        return "yes" if is_big == (" big?" in text) else "no"
    return look_where(group, next(one for one in drawn.groups if one.name == question.reference), question)


def look_where(group, other, question: Question) -> str:
    horizontal = question.kind in ("relation", "choice")
    before, after = ("left", "right") if horizontal else ("above", "below")
    at = "left" if horizontal else "top"
    middle, other_middle = (
        np.mean([getattr(copy, at) + copy.side / 2 for copy in one.copies]) for one in (group, other)
    )
    true = before if middle < other_middle else after
    if question.kind in ("choice", "vertical_choice"):
        return true
    return "yes" if f" {true} " in f"{question.text} " else "no"


def test_training_questions_do_not_leak_the_answer_by_their_words() -> None:
    rng = np.random.default_rng(0)
    truths: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(1500):
        for question in draw_questions(scene("train", index), rng, 4):
            if question.answer in ("yes", "no"):
                truths[question.kind][question.answer] += 1
                if question.kind == "existence":
                    truths["asked for", question.subject][question.answer] += 1
    for kind in ("existence", "is_colour", "is_number", "is_size", "relation", "vertical"):
        assert abs(share(truths[kind]) - 0.5) < 0.06, (kind, truths[kind])
    shares = [share(truths["asked for", name]) for name in NAMES]
    assert abs(np.mean(shares) - 0.5) < 0.03
    assert max(abs(np.asarray(shares) - 0.5)) < 0.35


def share(truths: Counter[str]) -> float:
    return truths["yes"] / sum(truths.values())


def test_training_leans_towards_habits_and_far_from_certainty() -> None:
    scenes = [scene("train", index) for index in range(1500)]
    coloured = [(g.colour == habits().colour[g.name]) for s in scenes for g in s.groups if g.colour]
    sized = [(g.size == habits().size[g.name]) for s in scenes for g in s.groups if g.size]
    assert 0.4 < np.mean(coloured) < 0.7
    assert 0.5 < np.mean(sized) < 0.7


def test_what_a_scene_does_not_say_is_not_asked() -> None:
    drawn = scene("train", 0)
    absent = next(name for name in NAMES if name not in drawn.present)
    natural = next(g for i in range(50) for g in scene("train", i).groups if g.colour is None)
    with pytest.raises(ValueError, match="no"):
        ask_number(drawn, absent)
    of = next(s for s in (scene("train", i) for i in range(50)) if natural in s.groups)
    with pytest.raises(ValueError, match="own colours"):
        ask_colour(of, natural.name)
    several = next((s, g) for s in (scene("train", i) for i in range(50)) for g in s.groups if g.number > 1)
    with pytest.raises(ValueError, match="several"):
        ask_is_size(several[0], several[1].name, "big")
    alone = next(s for s in (scene("train", i) for i in range(50)) if len(s.groups) > 1)
    one = alone.groups[0]
    with pytest.raises(ValueError, match="share"):
        ask_relation(alone, one.name, "left", one.name)
