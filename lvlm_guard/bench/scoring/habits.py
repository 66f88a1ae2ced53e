"""Accuracy where habit is right and where it is wrong, and the mean of the two, which an answer of habit cannot move.

Each half is the mean over both sides of the truth. So answers of habit, against habit, always "yes" and always "no" all have a
habit-balanced accuracy of one half, whatever the numbers of questions are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvlm_guard.bench.scoring.intervals import Statistic, Totals
from lvlm_guard.bench.scoring.measures import Counts

TRUE, BREAKING = 0, 1
"""The halves: the truth is what habit says, or it is not."""

CELLS = 8
"""Counts of a level: (right, all) for either half and either side of its truths."""

NAMES = ("habit_balanced", "habit_true", "habit_breaking")
"""How the measures begin that have to be read together."""


def count_half(*, right: bool, habitual: bool, side: bool | None, level: int = 0, levels: int = 1) -> Counts:
    """Count one answer in its half.

    Args:
        right: Whether it says what is true.
        habitual: Whether the truth is what habit says.
        side: Which side of the question the truth is, such as yes; None where it has no two sides: it counts half on both.
        level: Which of several levels it belongs to.
        levels: How many levels are counted.

    Returns:
        `CELLS` counts for each level, zero but for this one.
    """
    counts = np.zeros((levels, 2, 2, 2))
    half = TRUE if habitual else BREAKING
    if side is None:
        counts[level, half] = (right / 2, 1 / 2)
    else:
        counts[level, half, int(side)] = (right, 1)
    return tuple(counts.ravel().tolist())


@dataclass(frozen=True)
class HabitMean:
    """The mean over some halves, both sides of each, and over levels; levels of which a side was not asked are left out.

    Args:
        halves: `TRUE`, `BREAKING` or both.
        one_sided: Whether a half of which one side was not asked is the other side alone, as where a suite asks for no yes.
    """

    halves: tuple[int, ...] = (TRUE, BREAKING)
    one_sided: bool = False

    def __call__(self, totals: Totals) -> Totals:
        """Return scores of shape (...) from `count_half` summed, of shape (..., levels * `CELLS`); nan where no level is left."""
        cells = totals.reshape(*totals.shape[:-1], -1, 2, 2, 2)[..., self.halves, :, :]
        with np.errstate(invalid="ignore", divide="ignore"):
            sides = cells[..., 0] / cells[..., 1]
            by_half = _mean_defined(sides) if self.one_sided else sides.mean(-1)
            by_level = by_half.mean(-1)
            defined = ~np.isnan(by_level)
            return np.asarray(np.where(defined, by_level, 0.0).sum(-1) / defined.sum(-1))


def _mean_defined(shares: Totals) -> Totals:
    """Return the mean over the last axis of what is not nan; nan where all is."""
    defined = ~np.isnan(shares)
    return np.asarray(np.where(defined, shares, 0.0).sum(-1) / defined.sum(-1))


_HALVES: Sequence[tuple[tuple[int, ...], str]] = (
    ((TRUE, BREAKING), "habit-balanced accuracy"),
    ((TRUE,), "accuracy where habit is right"),
    ((BREAKING,), "accuracy where habit is wrong"),
)


def list_statistics(*, one_sided: bool = False) -> list[tuple[str, Statistic, str]]:
    """Return names, statistics and titles of the three measures, the headline first; `one_sided` as in `HabitMean`."""
    return [(name, HabitMean(halves, one_sided), title) for name, (halves, title) in zip(NAMES, _HALVES, strict=True)]


STATISTICS: Sequence[tuple[str, Statistic, str]] = list_statistics()
"""Those of a suite that asks for both sides."""


def are_read_together(measure: str, half: str) -> bool:
    """Whether a measure is habit-balanced accuracy and `half` names one of its halves, of the same questions."""
    balanced, *halves = NAMES
    return measure.startswith(balanced) and half in [measure.replace(balanced, begins, 1) for begins in halves]
