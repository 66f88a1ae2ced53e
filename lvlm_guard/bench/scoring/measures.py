"""A measure: which answers count, what they count for, and the score that all counts make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.scoring.intervals import Statistic, Totals, by_cluster, share

Counts: TypeAlias = tuple[float, ...]
Group: TypeAlias = Sequence[AnsweredItem]
Rows: TypeAlias = tuple[list[str], list[str], list[Counts]]
"""Names of groups, their clusters and their counts."""


def _alone(item: Item) -> str:
    return item.id


@dataclass(frozen=True)
class Measure:
    """A score over answers whose uncertainty can be estimated: sums of counts, and a statistic of the sums.

    Args:
        name: Unique within the suite, as in tables: "f1", "chair_i".
        level: The level it belongs to; "all" where it spans them.
        title: A few words for people.
        count: Counts of one group of answers, or None where the group is not counted.
        statistic: Maps summed counts to the score.
        higher_is_better: None where neither is, as for a yes-ratio.
        group: Answers with the same value are counted together; by default each alone.
        binary: `count` returns (1 or 0, 1), so that paired tests of outcomes apply.
    """

    name: str
    level: str
    title: str
    count: Callable[[Group], Counts | None]
    statistic: Statistic = share
    higher_is_better: bool | None = True
    group: Callable[[Item], str] = _alone
    binary: bool = False

    def rows(self, answers: Iterable[AnsweredItem]) -> Rows:
        """Group names, their clusters and their counts, in the order of the answers.

        What is not counted is left out.
        """
        groups: dict[str, list[AnsweredItem]] = {}
        for answer in answers:
            groups.setdefault(self.group(answer.item), []).append(answer)
        all_counts = [(name, group[0].item.cluster, self.count(group)) for name, group in groups.items()]
        defined = [(name, cluster, counts) for name, cluster, counts in all_counts if counts is not None]
        return (
            [name for name, _, _ in defined],
            [cluster for _, cluster, _ in defined],
            [counts for _, _, counts in defined],
        )

    def totals(self, answers: Iterable[AnsweredItem]) -> Totals:
        """Return summed counts `[clusters, counts]`; no rows where nothing is counted."""
        _, clusters, counts = self.rows(answers)
        return by_cluster(clusters, counts) if counts else np.zeros((0, 1))

    def value(self, answers: Iterable[AnsweredItem]) -> float:
        """Return the score; nan where nothing is counted."""
        totals = self.totals(answers)
        return float(self.statistic(totals.sum(0))) if len(totals) else float("nan")


def each(count: Callable[[AnsweredItem], Counts | None]) -> Callable[[Group], Counts | None]:
    """Turn a count of single answers into one of groups, for a measure whose answers stand alone."""
    return lambda group: count(group[0])
