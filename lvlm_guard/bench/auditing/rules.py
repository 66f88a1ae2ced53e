"""Rules that answer without looking: how far they get is how much of a suite its words alone decide.

A rule that is fitted is fitted on the pictures of the other folds, so that no picture is answered by what was learnt of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.scoring.fitted_bias import FOLDS, find_fold
from lvlm_guard.bench.scoring.margins import says_yes
from lvlm_guard.bench.suites.habits import KEY

Rule = Callable[[Item], str | None]
"""From an item, its truth not looked at, to an answer; None where the rule has none."""

OPPOSITES: Mapping[str, str] = {"yes": "no", "no": "yes", "left": "right", "right": "left"}
LEAD = 2
"""How much more frequent an answer must be than the next one to be given."""


def read_truth(item: Item) -> str | None:
    """Return the truth of a short question as a word, lower case; None of captions and other long answers."""
    side = says_yes(item.truth)
    if side is not None:
        return "yes" if side else "no"
    return item.truth.strip().lower() if isinstance(item.truth, str) and len(item.truth.split()) == 1 else None


def read_habit(item: Item) -> str | None:
    """Return what habit answers; None where nothing is known of it."""
    habit = item.extra.get(KEY)
    return habit.strip().lower() if isinstance(habit, str) else None


def follow_habit(item: Item) -> str | None:
    """Answer what is usual."""
    return read_habit(item)


def oppose_habit(item: Item) -> str | None:
    """Answer the opposite of what is usual, where there is one."""
    return OPPOSITES.get(read_habit(item) or "")


def always(answer: str) -> Rule:
    """Return the rule that gives one answer to every question that has a yes or a no."""
    return lambda item: answer if says_yes(item.truth) is not None else None


@dataclass(frozen=True)
class TextTable:
    """What was true of questions with the same text, else of the same kind.

    Args:
        texts: Truths by kind and text.
        kinds: Truths by kind.
    """

    texts: Mapping[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    kinds: Mapping[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def learn(self, items: Iterable[Item]) -> None:
        """Count the truths of some questions."""
        for item in items:
            if (truth := read_truth(item)) is not None:
                self.texts[item.kind, item.prompt][truth] += 1
                self.kinds[item.kind][truth] += 1

    def answer(self, item: Item) -> str | None:
        """Return what leads; None for ties.

        A lead of one is a tie: in a balanced suite, leaving a picture out alone makes the other answer lead by one.
        """
        for counts in (self.texts.get((item.kind, item.prompt)), self.kinds.get(item.kind)):
            if counts is not None and (leader := _find_leader(counts)) is not None:
                return leader
        return None


def _find_leader(counts: Counter[str]) -> str | None:
    first, *following = counts.most_common(2)
    return first[0] if first[1] - (following[0][1] if following else 0) >= LEAD else None


def fit_texts(items: Sequence[Item]) -> Rule:
    """Return the rule of a text table, fitted for each picture on those of the other folds."""
    tables = []
    for fold in range(FOLDS):
        table = TextTable()
        table.learn(item for item in items if find_fold(item.cluster) != fold)
        tables.append(table)
    return lambda item: tables[find_fold(item.cluster)].answer(item)


def build_rules(items: Sequence[Item]) -> dict[str, Rule]:
    """Return every blind rule by name, fitted on these items where there is something to fit."""
    return {
        "always yes": always("yes"),
        "always no": always("no"),
        "habit": follow_habit,
        "against habit": oppose_habit,
        "text": fit_texts(items),
    }
