"""Accuracy by halves: what answers that do not look come to, whatever is asked how often."""

import math
from itertools import product

import numpy as np
import pytest

from lvlm_guard.bench.scoring import habits
from lvlm_guard.bench.scoring.habits import are_read_together, count_half, list_statistics
from lvlm_guard.bench.scoring.intervals import Interval, format_interval

habit_balanced, habit_true, habit_breaking = (statistic for _, statistic, _ in list_statistics())

CELLS = list(product((True, False), (True, False)))
"""Whether the truth is habitual, and which side it is."""


def totals(answers):
    """Sum counts of (habitual, side, right)."""
    return np.sum([count_half(right=right, habitual=half, side=side) for half, side, right in answers], 0)


@pytest.mark.parametrize(
    "say",
    [lambda half, side: side, lambda half, side: not side, lambda half, side: half, lambda half, side: not half],
    ids=["yes", "no", "habit", "against"],
)
def test_whoever_does_not_look_has_one_half_however_often_what_is_asked(say):
    rng = np.random.default_rng(1)
    for _ in range(20):
        answers = [(half, side, say(half, side)) for half, side in CELLS for _ in range(int(rng.integers(1, 30)))]
        assert habit_balanced(totals(answers)) == pytest.approx(0.5)


def test_halves_by_hand():
    answers = [(True, True, True), (True, True, False), (True, False, True), (False, True, False), (False, False, True)]
    summed = totals(answers)
    assert habit_true(summed) == pytest.approx((0.5 + 1.0) / 2)
    assert habit_breaking(summed) == pytest.approx(0.5)
    assert habit_balanced(summed) == pytest.approx((0.75 + 0.5) / 2)


def test_a_question_without_sides_counts_half_on_both():
    assert sum(count_half(right=True, habitual=True, side=None)) == 2.0
    both = [*((half, side, False) for half, side in CELLS), *((half, None, True) for half in (True, False))]
    assert habit_balanced(totals(both)) == pytest.approx(0.5 / 1.5)


def test_levels_count_the_same_and_those_that_lack_a_side_not_at_all():
    def level(number, right, times):
        return [
            count_half(right=right, habitual=half, side=side, level=number, levels=3) for half, side in CELLS * times
        ]

    two = np.sum([*level(0, True, 50), *level(2, False, 1)], 0)
    assert habit_balanced(two) == pytest.approx(0.5)
    lacking = two + count_half(right=True, habitual=True, side=True, level=1, levels=3)
    assert habit_balanced(lacking) == pytest.approx(0.5)
    assert math.isnan(habit_balanced(totals([(True, True, True)])))


def test_scores_of_many_draws_are_those_of_each():
    rng = np.random.default_rng(2)
    draws = rng.integers(1, 9, (7, 3 * habits.CELLS)).astype(float)
    assert habit_balanced(draws).tolist() == pytest.approx([float(habit_balanced(draw)) for draw in draws])


def test_the_three_are_read_together():
    assert are_read_together("habit_balanced_object", "habit_true_object")
    assert are_read_together("habit_balanced", "habit_breaking")
    assert not are_read_together("habit_balanced_object", "habit_true_relation")
    assert not are_read_together("habit_true", "habit_breaking")
    assert not are_read_together("accuracy", "accuracy")


def test_no_interval_is_shown_without_a_width():
    assert format_interval(Interval(0.0001, 0.00002, 0.0003), 40, signed=True) == "+0.000 [+0.0000, +0.0003]"
    assert format_interval(Interval(0.5, 0.4, 0.6), 40) == "0.500 [0.400, 0.600]"
