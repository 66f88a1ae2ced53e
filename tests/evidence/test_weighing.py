"""Weights of evidence on made-up answers, where it is known what may be won and lost."""

import pytest
import torch
from lvlm_guard_evidence.calibration import find_break, fit_mixing
from lvlm_guard_evidence.claims import Claim
from lvlm_guard_evidence.mixing import Mixing
from lvlm_guard_evidence.questions import CalibrationQuestion
from lvlm_guard_evidence.weighing import LOSS_ALLOWED, CalibrationCase, balance, choose_weights

from lvlm_guard import FitRefused


def ask(count, strength, noise, *, habit=2.0, against=0.4, seed=0, level="object", without_habit=0.0):
    """Questions of a model that follows habit where its picture is faint, and evidence that is right by `strength` in `noise`."""
    draw = torch.Generator().manual_seed(seed)
    cases = []
    for number in range(count):
        truth = number % 2
        sign = 1.0 - 2.0 * truth
        is_habitual = float(torch.rand(1, generator=draw)) >= against
        has_habit = float(torch.rand(1, generator=draw)) >= without_habit
        pull = 0.0 if not has_habit else habit * (sign if is_habitual else -sign)
        seen, found = torch.randn(2, generator=draw).tolist()
        margin = 2.0 * sign + pull + seen
        odds = strength * sign + noise * found
        claim = Claim(level, "mug", value="red") if level == "attribute" else Claim(level, "mug")
        question = CalibrationQuestion(number, claim, ("yes", "no"), truth, is_habitual if has_habit else None)
        halves = [torch.tensor([value / 2, -value / 2]) for value in (margin, odds)]
        cases.append(CalibrationCase(question, *halves))
    return cases


def accuracy(cases, mixing, half):
    right = [case.is_right(mixing) for case in cases if case.half == half]
    return sum(right) / len(right)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_evidence_wins_against_habit_and_keeps_what_habit_gets_right(noise):
    cases, others = ask(3000, 2.0, noise), ask(3000, 2.0, noise, seed=1)
    chosen = choose_weights(cases)
    won, kept = (
        accuracy(others, chosen, half) - accuracy(others, Mixing(), half) for half in ("habit_breaking", "habit_true")
    )
    assert won > 0.05
    assert kept > -max(LOSS_ALLOWED, 0.05 * won) - 0.005  # of other questions than it was chosen on
    assert chosen.margin == 1


def test_a_constant_is_chosen_without_evidence():
    """A model that says no too often: a constant is worth something, and nothing else is looked at."""
    cases = ask(2000, 0.0, 1.0, habit=1.0)
    shifted = [CalibrationCase(case.question, case.margins - torch.tensor([0.9, -0.9]), case.odds) for case in cases]
    bias = choose_weights(shifted, with_evidence=False)
    assert bias.evidence == 0
    assert bias.constant > 0.5


def test_evidence_that_is_chance_is_left_out():
    with pytest.raises(FitRefused, match="adds"):
        fit_mixing(ask(1500, 0.0, 1.0))


def test_much_is_won_for_little():
    """A model that is lost wherever habit is wrong: a few answers that habit gets right are given for many."""
    cases = ask(2000, 4.0, 2.4, habit=6.0, against=0.5)
    chosen = choose_weights(cases)
    won, kept = (
        accuracy(cases, chosen, half) - accuracy(cases, Mixing(), half) for half in ("habit_breaking", "habit_true")
    )
    assert won > 0.5
    assert -0.05 * won - 0.01 < kept < -LOSS_ALLOWED
    assert fit_mixing(cases)[0]["existence"].evidence > 0


def test_questions_without_habits_count_as_what_may_be_won():
    cases = ask(2000, 2.0, 0.5, without_habit=1.0)
    chosen = choose_weights(cases)
    assert accuracy(cases, chosen, "no_habit") > accuracy(cases, Mixing(), "no_habit")


def test_nothing_is_chosen_where_habit_gets_all_right():
    assert choose_weights(ask(200, 2.0, 0.5, against=0.0)) == Mixing()


def test_halves_and_answers_weigh_the_same_whatever_their_number():
    cases = ask(600, 1.0, 1.0, against=0.2, without_habit=0.1)
    weights = balance(cases)
    sums = {
        (half, truth): float(
            sum(w for w, case in zip(weights, cases, strict=True) if (case.half, case.question.truth) == (half, truth))
        )
        for half in ("habit_true", "habit_breaking")
        for truth in (0, 1)
    }
    assert list(sums.values()) == pytest.approx([1.0] * 4)


def test_a_loss_is_a_break_beyond_what_its_wins_allow():
    cases = ask(1000, 1.0, 1.0, against=0.5)
    before = [case.half == "habit_true" for case in cases]
    of_habit = [number for number, case in enumerate(cases) if case.half == "habit_true"]
    won = [True] * len(cases)
    lossy = [number not in of_habit[: len(of_habit) // 20] for number in range(len(cases))]
    assert find_break(cases, before, won) == ""
    assert find_break(cases, before, lossy) == ""  # five points for all that was lost
    lossy_alone = [was and keeps for was, keeps in zip(before, lossy, strict=True)]
    assert find_break(cases, before, lossy_alone).startswith("habit-true answers fall from 1.000 to 0.9")
