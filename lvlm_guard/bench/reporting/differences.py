"""Whether a difference to greedy, or to a control, is more than chance, and in the better direction."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_guard.bench.reporting.results import Score
from lvlm_guard.bench.scoring.significance import Significance

SURE = 0.05
"""A difference counts where its p value, corrected where it is one of several, is below this."""


@dataclass(frozen=True)
class Rival:
    """A control beside a stack, on the headline measure.

    Args:
        gain: Control minus greedy, positive where the control is better.
        test: Stack minus control on the same items.
    """

    gain: float
    test: Significance


def is_better(score: Score) -> bool:
    """Return whether a score differs from greedy's in the better direction, beyond chance."""
    return is_sure(score) and find_direction(score) > 0


def is_worse(score: Score) -> bool:
    """Return whether a score differs from greedy's in the worse direction, beyond chance."""
    return is_sure(score) and find_direction(score) < 0


def corrected(test: Significance) -> float:
    """Return the p value that counts, which is the corrected one where there is one."""
    return test.p if test.adjusted_p is None else test.adjusted_p


def is_sure(score: Score) -> bool:
    """Return whether a score differs from greedy's beyond chance."""
    return score.against_greedy is not None and corrected(score.against_greedy) < SURE


def find_direction(score: Score) -> float:
    """Return the difference to greedy, positive where it is better; 0 where neither direction is."""
    return find_gain(score, score.against_greedy) if score.against_greedy is not None else 0.0


def find_gain(score: Score, test: Significance) -> float:
    """Return a difference, positive where it is better; 0 where neither direction is."""
    if score.higher_is_better is None:
        return 0.0
    return test.difference.value if score.higher_is_better else -test.difference.value


def beats(score: Score, test: Significance) -> bool:
    """Return whether a stack is better than one control, by one uncorrected test."""
    return test.p < SURE and find_gain(score, test) > 0
