"""What a stack did to a suite, in plain words: whether it helps, and whether a control that needs no picture does the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.reporting.differences import SURE as SURE  # noqa: PLC0414 - part of this module's names
from lvlm_guard.bench.reporting.differences import Rival as Rival  # noqa: PLC0414 - as above
from lvlm_guard.bench.reporting.differences import beats, find_direction, find_gain, is_sure
from lvlm_guard.bench.reporting.differences import corrected as corrected  # noqa: PLC0414 - as above
from lvlm_guard.bench.reporting.differences import is_better as is_better  # noqa: PLC0414 - as above
from lvlm_guard.bench.reporting.differences import is_worse as is_worse  # noqa: PLC0414 - as above
from lvlm_guard.bench.reporting.results import Outcome, Results, Score, compare_measure
from lvlm_guard.bench.reporting.sentences import (
    describe_changes,
    describe_matches,
    describe_resolution,
    describe_rival,
    summarise,
)
from lvlm_guard.bench.reporting.sentences import format_p as format_p  # noqa: PLC0414 - as above
from lvlm_guard.bench.running.systems import GREEDY, SAMPLING
from lvlm_guard.bench.scoring.frontier import COVERAGE, find_caption_measures
from lvlm_guard.bench.scoring.intervals import FEWEST, TOO_FEW, format_interval
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.scoring.significance import Significance

MATCHED = 0.5
"""Share of a stack's gain that a control must reach on its own to match it, unless the stack is clearly better."""

YES_SHIFT = 0.02
"""Change of the yes-ratio that counts as moved where a suite does not test it."""

AUC_RISE = 0.01
"""Rise of the AUC from which yes and no are separated better; it has no test of its own."""

YES_SHARE = "yes_ratio"
"""How the measures of a share of yes begin."""

HABIT_BALANCED, HABIT_HALVES = "habit_balanced", ("habit_true", "habit_breaking")
"""How the measure of both halves of the questions begins, and those of either half: habit is right, habit is wrong."""

Kind = Literal[
    "helps", "unproven", "says less", "moves habit", "only shifts bias", "indistinguishable from greedy", "changed nothing", "hurts",
    "too few pictures", "not compared", "unfinished", "refused",
]  # fmt: skip
KINDS: Mapping[Kind, str] = {
    "helps": f"Better than greedy on the headline measure (corrected p < {SURE}), and clearly better than every control.",
    "unproven": "Better than greedy, but not clearly better than every control, or there was none to compare with.",
    "says less": "Fewer absent objects, but no fewer than in greedy's captions cut to name as few of those that are there.",
    "moves habit": "Wins where habit is wrong and loses where it is right, at least half as much; or the other way round.",
    "only shifts bias": "A control that does not see the picture, or sees another one, gains as much, or only the share of yes moved.",
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
        level: The level that it is about; empty where it is about the suite's headline measure.
    """

    suite: str
    system: str
    kind: Kind
    why: str
    level: str = ""


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
        comparisons: Comparisons that its p values were corrected for.
        halves: Its scores where habit is right and where habit is wrong; None where the headline is not the mean of such two.
        length_adjusted: What its captions gain over greedy's cut to the same recall; None where the headline is not about that.
    """

    outcome: Outcome
    plain: Outcome | None = None
    headline: Score | None = None
    others: Sequence[Score] = ()
    rivals: Mapping[str, Rival] = field(default_factory=dict)
    asks: bool = True
    comparisons: int = 1
    halves: tuple[Score, Score] | None = None
    length_adjusted: Significance | None = None


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
    stacks = [outcome for outcome in results.outcomes if (outcome.suite, outcome.role) == (suite, "stack")]
    name = headline(results, suite)
    return [judge(build_case(results, outcome, name, measures, answers, len(stacks))) for outcome in stacks]


def build_case(
    results: Results,
    outcome: Outcome,
    name: str | None,
    measures: Sequence[Measure],
    answers: Mapping[str, Sequence[AnsweredItem]],
    comparisons: int,
) -> Case:
    """Collect all that a verdict on one stack and one measure rests on.

    Args:
        results: The figures.
        outcome: What became of the stack.
        name: The measure that the verdict is about; None without scores.
        measures: The measures of the suite.
        answers: Answers by system.
        comparisons: Comparisons that the p values were corrected for.
    """
    suite, system = outcome.suite, outcome.system
    tested = next((measure for measure in measures if measure.name == name), None)
    scores = [score for score in results.scores if (score.suite, score.system) == (suite, system)]
    first = next((score for score in scores if score.measure == name), None)
    plane = results.planes.get(suite)
    return Case(
        outcome=outcome,
        plain=next((entry for entry in results.outcomes if (entry.suite, entry.system) == (suite, GREEDY)), None),
        headline=first,
        others=[score for score in scores if score is not first],
        rivals=_rivals(results, first, tested, measures, answers) if first is not None and is_better(first) else {},
        asks=tested is None or asks_yes_no(tested, measures, answers.get(GREEDY, ())),
        comparisons=comparisons,
        halves=_find_halves(name or "", scores),
        length_adjusted=point.gain
        if plane is not None and plane.invention == name and (point := plane.of(system)) is not None
        else None,
    )


def _find_halves(name: str, scores: Sequence[Score]) -> tuple[Score, Score] | None:
    """Return the scores where habit is right and where it is wrong, of the same answers as a habit-balanced measure."""
    if not name.startswith(HABIT_BALANCED):
        return None
    by_name = {score.measure: score for score in scores}
    halves = [by_name.get(name.replace(HABIT_BALANCED, half, 1)) for half in HABIT_HALVES]
    return (halves[0], halves[1]) if halves[0] is not None and halves[1] is not None else None


def asks_yes_no(headline: Measure, measures: Sequence[Measure], answers: Sequence[AnsweredItem]) -> bool:
    """Return whether the headline counts answers that a share of yes also counts; true where no share is measured."""
    shares = [measure for measure in measures if measure.name.startswith(YES_SHARE)]
    counted = [answer for answer in answers if any(share.count([answer]) is not None for share in shares)]
    return not shares or bool(headline.rows(counted)[0])


def _rivals(
    results: Results,
    first: Score,
    measure: Measure | None,
    measures: Sequence[Measure],
    answers: Mapping[str, Sequence[AnsweredItem]],
) -> dict[str, Rival]:
    """Collect the controls that answered everything, each with its own gain and the stack's lead over it."""
    rivals = {}
    for name, score in results.of(first.suite, first.measure).items():
        if measure is None or not _is_rival(results, name, first.system) or not {name, first.system} <= set(answers):
            continue
        if _names_less(results, name, first.system, measure, measures, answers):
            continue
        test = compare_measure(measure, answers[name], answers[first.system])
        if test is not None and score.against_greedy is not None:
            rivals[name] = Rival(find_gain(score, score.against_greedy), test)
    return rivals


def _is_rival(results: Results, name: str, stack: str) -> bool:
    """Return whether a system is a control for a stack; a control matched to another stack's strength is not."""
    entry = results.manifest["systems"][name]
    matched = entry.get("matched", ())
    return entry["role"] == "control" and name not in (GREEDY, SAMPLING) and (not matched or stack in matched)


def _names_less(
    results: Results,
    name: str,
    stack: str,
    measure: Measure,
    measures: Sequence[Measure],
    answers: Mapping[str, Sequence[AnsweredItem]],
) -> bool:
    """Return whether a control invents less by naming less of what is there than a stack; its own swapped one always counts.

    What saying less would gain is judged by greedy's captions cut to the stack's recall.
    """
    plane = find_caption_measures(measures)
    if plane is None or plane[0].name != measure.name or results.manifest["systems"][name].get("matched"):
        return False
    lead = compare_measure(plane[1], answers[name], answers[stack])
    return lead is not None and lead.p < SURE and lead.difference.value > 0


def judge(case: Case) -> Verdict:
    """Judge one stack; the first rule that fits decides."""
    score = case.headline
    if (early := _without_figures(case)) is not None:
        return early
    if score is None or (test := score.against_greedy) is None or math.isnan(test.p):
        return _verdict(case, "not compared", "Greedy has no answers to compare with, or nothing was counted.")
    if is_worse(score):
        return _verdict(case, "hurts", summarise(score, test) + describe_changes(case.others))
    return _better(case, score, test) if is_better(score) else _no_better(case, score, test)


def _no_better(case: Case, score: Score, test: Significance) -> Verdict:
    """Judge a stack that is neither better nor worse than greedy beyond chance."""
    summary = summarise(score, test)
    if (move := _moves_habit(case)) is not None:
        return _verdict(case, "moves habit", f"{summary} {move}")
    if (shift := _only_yes_moved(case, score)) is not None:
        return _verdict(case, "only shifts bias", f"{summary} {shift}")
    size = describe_resolution(score, test, case.comparisons)
    return _verdict(case, "indistinguishable from greedy", summary + size + describe_changes(case.others))


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
        return _verdict(case, "too few pictures", summarise(score, score.against_greedy))
    return None


def _better(case: Case, score: Score, test: Significance) -> Verdict:
    """Judge a stack that beats greedy by what is left of its gain beside the controls."""
    summary = summarise(score, test)
    unbeaten = {name: rival for name, rival in case.rivals.items() if not beats(score, rival.test)}
    if (flaw := _find_flaw(case, score, test, unbeaten)) is not None:
        return _verdict(case, flaw[0], f"{summary} {flaw[1]}")
    if not case.rivals:
        return _verdict(case, "unproven", f"{summary} No control was there to compare with.")
    if unbeaten:
        name = min(unbeaten, key=lambda rival: abs(unbeaten[rival].test.difference.value))
        return _verdict(case, "unproven", f"{summary} {describe_rival(score, name, unbeaten[name])}")
    return _verdict(case, "helps", f"{summary} Beats {', '.join(case.rivals)}.{describe_changes(case.others)}")


def _find_flaw(case: Case, score: Score, test: Significance, unbeaten: Mapping[str, Rival]) -> tuple[Kind, str] | None:
    """Return what a gain amounts to, and why, where it is none that counts."""
    matching = {name: rival for name, rival in unbeaten.items() if rival.gain >= MATCHED * find_gain(score, test)}
    if matching:
        return "only shifts bias", describe_matches(score, matching)
    if (shift := _only_yes_moved(case, score)) is not None:
        return "only shifts bias", shift
    if (less := _says_less(case, score)) is not None:
        return "says less", less.strip()
    if (move := _moves_habit(case)) is not None:
        return "moves habit", move
    return None


def _says_less(case: Case, score: Score) -> str | None:
    """Say why fewer inventions are what shorter captions have; None where they are fewer than that."""
    if score.higher_is_better is not False:
        return None
    if (gain := case.length_adjusted) is not None and not math.isnan(gain.p):
        if corrected(gain) < SURE and gain.difference.value > 0:
            return None
        figures = format_interval(gain.difference, gain.clusters, signed=True)
        return f" Beside greedy's captions cut to the same recall it gains {figures}, {format_p(corrected(gain))}."
    fell = [
        measured
        for measured in case.others
        if measured.measure.startswith(COVERAGE) and measured.level == score.level and is_worse(measured)
    ]
    return describe_changes(fell) if fell else None


def _moves_habit(case: Case) -> str | None:
    """Say what is won in one half of the questions and lost in the other; None where that is not so."""
    if case.halves is None:
        return None
    for won, lost in (case.halves, case.halves[::-1]):
        if is_better(won) and is_worse(lost) and -find_direction(lost) >= MATCHED * find_direction(won):
            return f"{won.title} {find_direction(won):+.3f}, {lost.title} {find_direction(lost):+.3f}."
    return None


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
        return f"The share of yes moved by {test.difference.value:+.3f}" if is_sure(tested) else None
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
