"""Figures of the collage model's card: no interval of few twins, and a lean of the questions that have one."""

import pytest

from lvlm_guard.bench.scoring.intervals import FEWEST
from lvlm_guard.testbed.collage.card import CardReply, accuracy, measure_lean, separation, with_interval
from lvlm_guard.testbed.collage.world.questions import Question


def reply(cluster, margin, answer="yes", word="yes"):
    return CardReply(Question("Is there a dog?", answer, "object", "existence", "dog"), cluster, margin, word)


@pytest.mark.parametrize("twins", [1, FEWEST - 1])
def test_few_twins_have_no_interval(twins):
    replies = [reply(number, 1.0) for number in range(twins)]
    assert with_interval(replies, accuracy) == {"value": 1.0, "low": None, "high": None, "n": twins}


def test_many_twins_have_one_that_holds_the_figure():
    replies = [reply(number, 1.0 if number % 3 else -1.0) for number in range(60)]
    found = with_interval(replies, accuracy)
    assert found["low"] < found["value"] == round(2 / 3, 4) < found["high"]
    assert found["high"] - found["low"] > 0.1


def test_only_questions_of_yes_and_no_lean_or_are_told_apart():
    replies = [reply(0, 1.0), reply(1, -1.0, "no"), reply(2, 5.0, "red", "red"), reply(3, 5.0, "two", "two")]
    assert measure_lean(replies) == 0.5
    assert separation(replies) == 1.0
    assert accuracy(replies) == 1.0
