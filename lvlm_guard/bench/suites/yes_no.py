"""The measures that all yes/no suites share; the truth of an item is "yes" or "no"; items with another truth are not counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.scoring.habits import count_half, list_statistics
from lvlm_guard.bench.scoring.intervals import (
    Share,
    Statistic,
    f1,
    harmonic_share,
    mean_share,
    share,
    yes_ratio,
)
from lvlm_guard.bench.scoring.measures import Counts, Measure, each
from lvlm_guard.bench.scoring.parsers import Parser
from lvlm_guard.bench.suites.habits import KEY

TRUTHS = ("no", "yes")
YES_NO_TOKENS = 16
_UNPARSED = Share((5,), (1, 3))


def everything(item: Item) -> bool:
    """Keep every item."""
    del item
    return True


@dataclass(frozen=True)
class Part:
    """The items that a set of measures is about.

    Args:
        level: The level they belong to, "all" where they span several.
        name: Ends the names of the measures; empty for the whole suite.
        keep: Whether an item belongs to it.
        positive_no: Precision, recall and F1 are those of "no".
    """

    level: str
    name: str = ""
    keep: Callable[[Item], bool] = everything
    positive_no: bool = False


def right(answered: AnsweredItem, answer: Parser) -> bool:
    """Return whether an answer says what is true; one that says neither does not."""
    return answer(answered.text) is (answered.item.truth == "yes")


def counts(answered: AnsweredItem, answer: Parser, *, positive_no: bool = False) -> Counts:
    """Count right yes, all yes, right no, all no, said yes, said neither; yes and no swap where "no" is positive."""
    reading, true = answer(answered.text), answered.item.truth == "yes"
    if positive_no:
        reading, true = None if reading is None else not reading, not true
    return (
        float(reading is True and true),
        float(true),
        float(reading is False and not true),
        float(not true),
        float(reading is True),
        float(reading is None),
    )


def yes_no_measures(answer: Parser, part: Part) -> list[Measure]:
    """Build accuracy, F1, precision, recall, balanced accuracy, harmonic recall, yes-ratio and unparsed share."""

    def belongs(answered: AnsweredItem) -> bool:
        return answered.item.truth in TRUTHS and part.keep(answered.item)

    def is_right(answered: AnsweredItem) -> Counts | None:
        return (float(right(answered, answer)), 1.0) if belongs(answered) else None

    def of_positive(answered: AnsweredItem) -> Counts | None:
        return counts(answered, answer, positive_no=part.positive_no) if belongs(answered) else None

    def of_yes(answered: AnsweredItem) -> Counts | None:
        return counts(answered, answer) if belongs(answered) else None

    positive = "no" if part.positive_no else "yes"
    return [
        _measure(part, "accuracy", "right answers", is_right, share, binary=True),
        _measure(part, "f1", f"F1 of {positive}", of_positive, f1),
        _measure(part, "precision", f"precision of {positive}", of_positive, Share((0,), (4,))),
        _measure(part, "recall", f"recall of {positive}", of_positive, Share((0,), (1,))),
        _measure(part, "balanced_accuracy", "mean of the recalls of yes and no", of_yes, mean_share),
        _measure(part, "harmonic_recall", "harmonic mean of the recalls of yes and no", of_yes, harmonic_share),
        _measure(part, "yes_ratio", "answers that say yes", of_yes, yes_ratio, better=None),
        _measure(part, "unparsed", "answers that say neither", of_yes, _UNPARSED, better=False),
    ]


def habit_measures(answer: Parser, part: Part) -> list[Measure]:
    """Build the share of right answers where habit is true, where it breaks, and the mean of the two.

    Each share is the mean of those of yes and of no, where both are asked, so that neither an answer that is always the same,
    nor one that always follows habit or always inverts it, gets more than one half of the mean. An item without a habit, as
    `lvlm_guard.bench.suites.habits` estimates it, is not counted.
    """

    def count(answered: AnsweredItem) -> Counts | None:
        habit, truth = answered.item.extra.get(KEY), answered.item.truth
        if habit not in TRUTHS or truth not in TRUTHS or not part.keep(answered.item):
            return None
        return count_half(right=right(answered, answer), habitual=habit == truth, side=truth == "yes")

    return [_measure(part, name, title, count, statistic) for name, statistic, title in list_statistics(one_sided=True)]


def _measure(
    part: Part,
    name: str,
    title: str,
    count: Callable[[AnsweredItem], Counts | None],
    statistic: Statistic,
    *,
    better: bool | None = True,
    binary: bool = False,
) -> Measure:
    return Measure(
        name=f"{name}_{part.name}" if part.name else name,
        level=part.level,
        title=f"{title}, {part.name}" if part.name else title,
        count=each(count),
        statistic=statistic,
        higher_is_better=better,
        binary=binary,
    )


def of_kind(kind: str) -> Callable[[Item], bool]:
    """Keep only the items of one kind."""
    return lambda item: item.kind == kind


def of_level(level: str) -> Callable[[Item], bool]:
    """Keep only the items of one level."""
    return lambda item: item.level == level


def select_yes_no(answers: Sequence[AnsweredItem]) -> list[AnsweredItem]:
    """Return the answers to yes/no questions."""
    return [answered for answered in answers if answered.item.truth in TRUTHS]
