"""Audit a suite: answer balances, texts that give their answers away, blind rules, and errors of a model that these explain."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lvlm_guard.bench.auditing.rules import Rule, build_rules, read_habit, read_truth
from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.scoring.intervals import Interval, by_cluster, interval
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.scoring.rightness import is_right

FEWEST_TEXTS = 4
"""Pictures that must be asked the same before a text is said to give its answer away."""

GIVEN_AWAY = 0.8
"""Share of one answer from which a text is said to give it away."""

HABIT, YES, NO, FREQUENT = "habit", "leaning to yes", "leaning to no", "the most frequent answer"
"""What errors are explained by."""


@dataclass(frozen=True)
class AnswerBalance:
    """How the answers of one kind of question are spread.

    Args:
        level: The level.
        kind: The suite's own category.
        questions: How many there are.
        frequent: The most frequent answer.
        share: Its share.
        habitual: Share of the truths that are what habit says; None where habit is not known.
    """

    level: str
    kind: str
    questions: int
    frequent: str
    share: float
    habitual: float | None


@dataclass(frozen=True)
class RuleScore:
    """How far a blind rule gets.

    Args:
        rule: Its name.
        level: The level; "all" over all of them.
        accuracy: Share of right answers among those questions that it answers.
        questions: Questions that it answers.
        pictures: Pictures that they are about.
        chance: The share of right answers by chance, an answer drawn among those of its kind.
    """

    rule: str
    level: str
    accuracy: Interval
    questions: int
    pictures: int
    chance: float


@dataclass(frozen=True)
class RevealingText:
    """A question that is asked of several pictures and has nearly always one answer."""

    prompt: str
    answer: str
    questions: int
    share: float


@dataclass(frozen=True)
class Explanation:
    """How many of a model's errors a cause at the data explains.

    Args:
        cause: Habit, leaning to yes or no, or the most frequent answer.
        level: The level; "all" over all of them.
        errors: Wrong answers to the questions that the cause is about.
        against: Error rate where the cause speaks against the truth.
        along: Error rate where it speaks for it.
        explained: Errors beyond those there would be if the first rate were the second; none below 0.
    """

    cause: str
    level: str
    errors: int
    against: float
    along: float
    explained: float

    @property
    def share(self) -> float:
        """Share of the errors that are explained."""
        return self.explained / self.errors if self.errors else 0.0


@dataclass(frozen=True)
class Audit:
    """What a suite gives away.

    Args:
        balances: By level and kind.
        rules: By rule and level.
        texts: The questions that give their answers away, the most frequent first.
        headline: Scores of every rule on the suite's headline measure, where it answers all that this counts.
        explanations: By cause and level; none without a run.
    """

    balances: Sequence[AnswerBalance]
    rules: Sequence[RuleScore]
    texts: Sequence[RevealingText]
    headline: Mapping[str, float]
    explanations: Sequence[Explanation] = ()


def audit_items(items: Sequence[Item], measures: Sequence[Measure], answers: Sequence[AnsweredItem] = ()) -> Audit:
    """Audit the items of a suite, and the errors of a model where its answers are given.

    Args:
        items: All items; captions are left out.
        measures: The suite's, its headline first.
        answers: Plain generate's.
    """
    short = [item for item in items if read_truth(item) is not None]
    rules = build_rules(short)
    return Audit(
        _balance(short),
        [score for name, rule in rules.items() for score in _score_rule(name, rule, short)],
        _find_texts(short),
        {name: value for name, rule in rules.items() if (value := _score_headline(rule, short, measures)) is not None},
        explain_errors(answers, measures),
    )


def _balance(items: Sequence[Item]) -> list[AnswerBalance]:
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        groups[item.level, item.kind].append(item)
    balances = []
    for (level, kind), members in groups.items():
        answer, count = Counter(map(read_truth, members)).most_common(1)[0]
        habitual = [read_truth(item) == habit for item in members if (habit := read_habit(item)) is not None]
        share = sum(habitual) / len(habitual) if habitual else None
        balances.append(AnswerBalance(level, kind, len(members), str(answer), count / len(members), share))
    return balances


def _score_rule(name: str, rule: Rule, items: Sequence[Item]) -> list[RuleScore]:
    answered = [(item, answer == read_truth(item)) for item in items if (answer := rule(item)) is not None]
    choices = _count_choices(items)
    scores = []
    for level in ("all", *dict.fromkeys(item.level for item, _ in answered)):
        at_level = [(item, right) for item, right in answered if level in ("all", item.level)]
        if not at_level:
            continue
        clusters = [item.cluster for item, _ in at_level]
        totals = by_cluster(clusters, [(float(right), 1.0) for _, right in at_level])
        chance = float(np.mean([1 / choices[item.kind] for item, _ in at_level]))
        scores.append(RuleScore(name, level, interval(totals), len(at_level), len(set(clusters)), chance))
    return scores


def _count_choices(items: Sequence[Item]) -> dict[str, int]:
    """Return how many different answers the questions of each kind have, at least two."""
    answers: dict[str, set[str | None]] = defaultdict(set)
    for item in items:
        answers[item.kind].add(read_truth(item))
    return {kind: max(len(values), 2) for kind, values in answers.items()}


def _find_texts(items: Sequence[Item]) -> list[RevealingText]:
    truths: dict[str, list[str | None]] = defaultdict(list)
    for item in items:
        truths[item.prompt].append(read_truth(item))
    texts = []
    for prompt, values in truths.items():
        answer, count = Counter(values).most_common(1)[0]
        if len(values) >= FEWEST_TEXTS and count / len(values) >= GIVEN_AWAY:
            texts.append(RevealingText(prompt, str(answer), len(values), count / len(values)))
    return sorted(texts, key=lambda text: (-text.questions, text.prompt))


def _score_headline(rule: Rule, items: Sequence[Item], measures: Sequence[Measure]) -> float | None:
    """Return the headline of a rule's answers; None where it leaves out questions that the headline counts."""
    measure = next((measure for measure in measures if measure.higher_is_better is not None), None)
    if measure is None:
        return None
    counted = [item for item in items if measure.count([AnsweredItem(item, "yes")]) is not None]
    answers = [(item, rule(item)) for item in counted]
    if not answers or any(answer is None for _, answer in answers):
        return None
    value = measure.value([AnsweredItem(item, str(answer).capitalize()) for item, answer in answers])
    return None if np.isnan(value) else value


def explain_errors(answers: Sequence[AnsweredItem], measures: Sequence[Measure]) -> list[Explanation]:
    """Return how many wrong answers each cause explains, over all levels and level by level.

    A cause explains what goes wrong more often where it speaks against the truth than where it speaks for it; that a wrong answer
    to a question of yes and no agrees with it says nothing, since there is only one other answer.
    """
    judged = [
        (answer, right)
        for answer in answers
        if read_truth(answer.item) is not None and (right := is_right(answer, measures)) is not None
    ]
    frequent = {(balance.level, balance.kind): balance.frequent for balance in _balance([a.item for a, _ in judged])}
    sides: dict[str, Rule] = {
        HABIT: read_habit,
        YES: lambda item: "yes" if read_truth(item) in ("yes", "no") else None,
        NO: lambda item: "no" if read_truth(item) in ("yes", "no") else None,
        FREQUENT: lambda item: frequent[item.level, item.kind],
    }
    levels = ("all", *dict.fromkeys(answer.item.level for answer, _ in judged))
    explained = [_explain(cause, side, level, judged) for cause, side in sides.items() for level in levels]
    return [explanation for explanation in explained if explanation is not None]


def _explain(cause: str, side: Rule, level: str, judged: Sequence[tuple[AnsweredItem, bool]]) -> Explanation | None:
    along: list[bool] = []
    against: list[bool] = []
    for answer, right in judged:
        speaks = side(answer.item)
        if speaks is None or level not in ("all", answer.item.level):
            continue
        (along if speaks == read_truth(answer.item) else against).append(not right)
    if not along or not against:
        return None
    rates = float(np.mean(against)), float(np.mean(along))
    explained = max(rates[0] - rates[1], 0.0) * len(against)
    return Explanation(cause, level, sum(along) + sum(against), *rates, explained)
