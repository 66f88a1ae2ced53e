"""Whether one answer is right, by the measures of its suite alone."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.scoring.measures import Measure


def is_right(answer: AnsweredItem, measures: Sequence[Measure]) -> bool | None:
    """Return whether an answer is right; None where no measure counts it alone.

    The first measure decides that counts shares of single answers: all that it counts is right, or of what is better the
    less there is, such as inventions, nothing is there.

    Args:
        answer: The answer.
        measures: The suite's, its headline first.
    """
    for measure in measures:
        if measure.higher_is_better is None or measure.group(answer.item) != answer.item.id:
            continue
        counts = measure.count([answer])
        if counts is None or len(counts) % 2:
            continue
        part, total = sum(counts[0::2]), sum(counts[1::2])
        if total:
            return part == total if measure.higher_is_better else part == 0
        if not measure.higher_is_better:
            return True  # nothing was named, so nothing was invented
    return None


def find_margin(answer: AnsweredItem) -> float | None:
    """Return how sure an answer is: the size of its margin between yes and no, in nats; None where it has none."""
    return None if answer.margin is None else abs(answer.margin)
