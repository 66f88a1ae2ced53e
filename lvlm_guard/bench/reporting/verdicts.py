"""What a stack did to a suite, in plain words: whether it helps, and whether a control that needs no picture does the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.reporting.results import Outcome, Results, Score, compare_measure
from lvlm_guard.bench.running.systems import GREEDY, SAMPLING
from lvlm_guard.bench.scoring.frontier import COVERAGE
from lvlm_guard.bench.scoring.intervals import FEWEST, TOO_FEW, format_interval
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.scoring.significance import Significance, find_resolution

SURE = 0.05
"""A difference counts where its p value, corrected where it is one of several, is below this."""

MATCHED = 0.5
"""Share of a stack's gain that a control must reach on its own to match it, unless the stack is clearly better."""

YES_SHIFT = 0.02
"""Change of the yes-ratio that counts as moved where a suite does not test it."""

AUC_RISE = 0.01
"""Rise of the AUC from which yes and no are separated better; it has no test of its own."""

MOST = 3
"""Other measures that a reason names."""

YES_SHARE = "yes_ratio"
"""How the measures of a share of yes begin."""

Kind = Literal[
    "helps", "unproven", "says less", "only shifts bias", "indistinguishable from greedy", "changed nothing", "hurts",
    "too few pictures", "not compared", "unfinished", "refused",
]  # fmt: skip
KINDS: Mapping[Kind, str] = {
    "helps": f"Better than greedy on the headline measure (corrected p < {SURE}), and clearly better than every control.",
    "unproven": "Better than greedy, but not clearly better than every control, or there was none to compare with.",
    "says less": "Fewer absent objects, but also fewer of those that are there: what shorter captions do.",
    "only shifts bias": "A control that never looks at the picture gains as much, or only the share of yes moved.",
    "indistinguishable from greedy": f"Answers changed, the headline measure did not (corrected p at least {SURE}).",
    "changed nothing": "Every answer is greedy's.",
    "hurts": f"Worse than greedy on the headline measure (corrected p < {SURE}).",
    "too few pictures": f"Fewer than {FEWEST} pictures: nothing can be told from chance.",
    "not compared": "There is nothing to compare with: greedy has no whole set of answers, or the measure counts nothing.",
    "unfinished": "Not every item is answered, so there are no scores.",
    "refused": "The stack could not answer; the reason is its own.",
}
"""Every verdict and what it means, best first."""


@dataclass(frozen=True)
class Verdict:
    """A finding about one stack on one suite.

    Args:
        suite: The suite's name in the run.
        system: The stack.
        kind: The finding.
        why: The figures that it rests on, one or two sentences.
    """

    suite: str
    system: str
    kind: Kind
    why: str


@dataclass(frozen=True)
class Rival:
    """A control beside a stack, on the headline measure.

    Args:
        gain: Control minus greedy, positive where the control is better.
        test: Stack minus control on the same items.
    """

    gain: float
    test: Significance


@dataclass(frozen=True)
class Case:
    """All that a verdict rests on.

    Args:
        outcome: What became of the stack.
        plain: What became of greedy.
        headline: Its score on the headline measure; None where it has none.
        others: Its scores on the other measures of the suite.
        asks: Whether the headline measure is about answers of yes or no, so that more yes could be what it measures.
        rivals: Controls that it was compared with, by name.
    """

    outcome: Outcome
    plain: Outcome | None = None
    headline: Score | None = None
    others: Sequence[Score] = ()
    rivals: Mapping[str, Rival] = field(default_factory=dict)
    asks: bool = True
    comparisons: int = 1


def headline(results: Results, suite: str) -> str | None:
    """Return the suite's first measure that has a better direction, which verdicts are about; None without scores."""
    return next(
        (score.measure for score in results.scores if score.suite == suite and score.higher_is_better is not None), None
    )


def verdicts(
    results: Results, suite: str, measures: Sequence[Measure], answers: Mapping[str, Sequence[AnsweredItem]]
) -> list[Verdict]:
    """Judge every stack of a suite, in the order of the run.

    Args:
        results: The figures.
        suite: The suite's name in the run.
        measures: Its measures, so that stacks are tested against controls.
        answers: Answers by system.
    """
    outcomes = {outcome.system: outcome for outcome in results.outcomes if outcome.suite == suite}
    name = headline(results, suite)
    tested = next((measure for measure in measures if measure.name == name), None)
    asks = tested is None or asks_yes_no(tested, measures, answers.get(GREEDY, ()))
    stacks = [outcome for outcome in outcomes.values() if outcome.role == "stack"]
    judgements = []
    for outcome in stacks:
        scores = [score for score in results.scores if (score.suite, score.system) == (suite, outcome.system)]
        first = next((score for score in scores if score.measure == name), None)
        rivals = _rivals(results, suite, first, tested, answers) if first is not None and is_better(first) else {}
        others = [score for score in scores if score is not first]
        judgements.append(judge(Case(outcome, outcomes.get(GREEDY), first, others, rivals, asks, len(stacks))))
    return judgements


def asks_yes_no(headline: Measure, measures: Sequence[Measure], answers: Sequence[AnsweredItem]) -> bool:
    """Return whether the headline counts answers that a share of yes also counts; true where no share is measured."""
    shares = [measure for measure in measures if measure.name.startswith(YES_SHARE)]
    counted = [answer for answer in answers if any(share.count([answer]) is not None for share in shares)]
    return not shares or bool(headline.rows(counted)[0])


def _rivals(
    results: Results, suite: str, first: Score, measure: Measure | None, answers: Mapping[str, Sequence[AnsweredItem]]
) -> dict[str, Rival]:
    """Collect the controls that answered everything, each with its own gain and the stack's lead over it."""
    rivals = {}
    for name, score in results.of(suite, first.measure).items():
        if measure is None or not _is_rival(results, name, first.system) or not {name, first.system} <= set(answers):
            continue
        test = compare_measure(measure, answers[name], answers[first.system])
        if test is not None and score.against_greedy is not None:
            rivals[name] = Rival(_gain(score, score.against_greedy), test)
    return rivals


def _is_rival(results: Results, name: str, stack: str) -> bool:
    """Return whether a system is a control for a stack; a control matched to another stack's strength is not."""
    entry = results.manifest["systems"][name]
    matched = entry.get("matched", ())
    return entry["role"] == "control" and name not in (GREEDY, SAMPLING) and (not matched or stack in matched)


def judge(case: Case) -> Verdict:
    """Judge one stack; the first rule that fits decides."""
    score = case.headline
    if (early := _without_figures(case)) is not None:
        return early
    if score is None or (test := score.against_greedy) is None or math.isnan(test.p):
        return _verdict(case, "not compared", "Greedy has no answers to compare with, or nothing was counted.")
    if is_worse(score):
        return _verdict(case, "hurts", _summarise(score, test) + _describe_changes(case.others))
    if is_better(score):
        return _better(case, score, test)
    if (shift := _only_yes_moved(case, score)) is not None:
        return _verdict(case, "only shifts bias", f"{_summarise(score, test)} {shift}")
    summary = _summarise(score, test) + _describe_resolution(score, test, case.comparisons)
    return _verdict(case, "indistinguishable from greedy", summary + _describe_changes(case.others))


def _without_figures(case: Case) -> Verdict | None:
    """Return the verdict where no figure is needed for it, else None."""
    outcome = case.outcome
    if outcome.refused is not None:
        return _verdict(case, "refused", f"{outcome.refused.error}: {outcome.refused.reason}")
    if not outcome.whole:
        return _verdict(case, "unfinished", f"{outcome.answers} of {outcome.items} answers.")
    if outcome.changed is not None and outcome.changed.is_none:
        return _verdict(case, "changed nothing", f"All {outcome.changed.n} answers are greedy's.")
    score = case.headline
    if score is not None and score.against_greedy is not None and score.against_greedy.test == TOO_FEW:
        return _verdict(case, "too few pictures", _summarise(score, score.against_greedy))
    return None


def _better(case: Case, score: Score, test: Significance) -> Verdict:
    """Judge a stack that beats greedy by what is left of its gain beside the controls."""
    summary = _summarise(score, test)
    if (shift := _only_yes_moved(case, score)) is not None:
        return _verdict(case, "only shifts bias", f"{summary} {shift}")
    unbeaten = {name: rival for name, rival in case.rivals.items() if not _beats(score, rival.test)}
    matching = [name for name, rival in unbeaten.items() if rival.gain >= MATCHED * _gain(score, test)]
    if matching:
        return _verdict(case, "only shifts bias", f"{summary} {_rival(score, matching[0], unbeaten[matching[0]])}")
    fell = [
        measured
        for measured in case.others
        if measured.measure.startswith(COVERAGE) and measured.level == score.level and is_worse(measured)
    ]
    if score.higher_is_better is False and fell:
        return _verdict(case, "says less", summary + _describe_changes(fell))
    if not case.rivals:
        return _verdict(case, "unproven", f"{summary} No control was there to compare with.")
    if unbeaten:
        name = min(unbeaten, key=lambda rival: abs(unbeaten[rival].test.difference.value))
        return _verdict(case, "unproven", f"{summary} {_rival(score, name, unbeaten[name])}")
    return _verdict(case, "helps", f"{summary} Beats {', '.join(case.rivals)}.{_describe_changes(case.others)}")


def is_better(score: Score) -> bool:
    """Return whether a score differs from greedy's in the better direction, beyond chance."""
    return _is_sure(score) and _direction(score) > 0


def is_worse(score: Score) -> bool:
    """Return whether a score differs from greedy's in the worse direction, beyond chance."""
    return _is_sure(score) and _direction(score) < 0


def corrected(test: Significance) -> float:
    """Return the p value that counts, which is the corrected one where there is one."""
    return test.p if test.adjusted_p is None else test.adjusted_p


def _is_sure(score: Score) -> bool:
    return score.against_greedy is not None and corrected(score.against_greedy) < SURE


def _direction(score: Score) -> float:
    """Return the difference to greedy, positive where it is better; 0 where neither direction is."""
    return _gain(score, score.against_greedy) if score.against_greedy is not None else 0.0


def _gain(score: Score, test: Significance) -> float:
    if score.higher_is_better is None:
        return 0.0
    return test.difference.value if score.higher_is_better else -test.difference.value


def _beats(score: Score, test: Significance) -> bool:
    """Return whether a stack is better than one control, by one uncorrected test."""
    return test.p < SURE and _gain(score, test) > 0


def _only_yes_moved(case: Case, score: Score) -> str | None:
    """Describe the shift where the share of yes moved and yes and no are separated no better; None otherwise."""
    moved = _yes_moved(case, score.level)
    if moved is None or not case.asks:
        return None
    if case.plain is not None and (level := _level_of_auc(case, case.plain, score.level)):
        rise = case.outcome.auc[level] - case.plain.auc[level]
        return f"{moved}, the AUC of yes against no only by {rise:+.3f}." if rise < AUC_RISE else None
    apart = _first(case.others, "harmonic", score.level)
    if apart is None or is_better(apart):
        return None
    return f"{moved}, and the harmonic mean of both recalls is no better."


def _yes_moved(case: Case, level: str) -> str | None:
    tested = _first(case.others, YES_SHARE, level)
    if tested is not None and (test := tested.against_greedy) is not None:
        return f"The share of yes moved by {test.difference.value:+.3f}" if _is_sure(tested) else None
    before, after = None if case.plain is None else case.plain.yes_ratio, case.outcome.yes_ratio
    if before is None or after is None or abs(after - before) < YES_SHIFT:
        return None
    return f"The share of yes moved by {after - before:+.3f}"


def _first(scores: Sequence[Score], begins: str, level: str) -> Score | None:
    """Return the first measure of a level whose name starts so; over all levels where that level has none."""
    candidates = [score for score in scores if score.measure.startswith(begins)]
    return next((score for place in (level, "all") for score in candidates if score.level == place), None)


def _level_of_auc(case: Case, plain: Outcome, level: str) -> str | None:
    return next(
        (candidate for candidate in (level, "all") if candidate in case.outcome.auc and candidate in plain.auc), None
    )


def _verdict(case: Case, kind: Kind, why: str) -> Verdict:
    return Verdict(case.outcome.suite, case.outcome.system, kind, why)


def _summarise(score: Score, test: Significance) -> str:
    change = test.difference
    figures = format_interval(change, test.clusters, signed=True)
    return f"{score.title}: {figures}, {format_p(corrected(test))}."


def _describe_resolution(score: Score, test: Significance, comparisons: int) -> str:
    """Say which differences the run was too small for; nothing where that is not known."""
    is_share = score.found.value <= 1
    least = find_resolution(test, comparisons, SURE, span=1.0 if is_share else 0.0)
    size = f"{test.n} answers about {test.clusters} pictures"
    if is_share and least >= 1:
        return f" No difference could have been seen with {size}."
    return f" Differences below about {least:.3f} could not have been seen with {size}." if least > 0 else ""


def format_p(p: float) -> str:
    """Write a p value for a sentence."""
    return "p unknown" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"  # noqa: PLR2004 - shown digits


def _rival(score: Score, name: str, rival: Rival) -> str:
    change = rival.test.difference
    aim = "higher" if score.higher_is_better else "lower"
    gain = rival.gain if score.higher_is_better else -rival.gain
    figures = f"{format_interval(change, rival.test.clusters, signed=True)}, {format_p(rival.test.p)}"
    return f"{name}, a control, alone changes it by {gain:+.3f}; the stack is not clearly {aim} ({figures})."


def _describe_changes(measured: Iterable[Score]) -> str:
    """Name the other measures that changed beyond chance."""
    scores = list(measured)
    words = [("Better", filter(is_better, scores)), ("Worse", filter(is_worse, scores))]
    sentences = [(word, _join_changes([_change(score) for score in changed])) for word, changed in words]
    return "".join(f" {word} besides: {names}." for word, names in sentences if names)


def _join_changes(changes: Sequence[str]) -> str:
    more = f" and {len(changes) - MOST} more" if len(changes) > MOST else ""
    return ", ".join(changes[:MOST]) + more


def _change(score: Score) -> str:
    change = score.against_greedy.difference.value if score.against_greedy is not None else math.nan
    level = "" if score.level == "all" else f" ({score.level})"
    return f"{score.title}{level} {change:+.3f}"
