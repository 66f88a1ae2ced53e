"""Verdicts level by level, on habit-balanced accuracy and on captions, corrected over stacks and levels together."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.reporting.differences import SURE
from lvlm_guard.bench.reporting.results import Results, compare_measure
from lvlm_guard.bench.reporting.verdicts import HABIT_BALANCED, HABIT_HALVES, Case, Verdict, build_case, judge
from lvlm_guard.bench.running.systems import GREEDY
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.scoring.significance import BOOTSTRAP, RESAMPLES, correct_p_values

RESAMPLES_EACH = 400
"""Resamples for each comparison of a family: a p value of none of them is at most 0.005 after the correction for all."""

CAPTIONS = "captions"
"""What the verdict on inventions is called beside those of the levels."""


@dataclass(frozen=True)
class LevelTable:
    """Verdicts by stack and level: the levels, and a row for each stack, best known first."""

    levels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Verdict, ...]], ...]


def tabulate(judgements: Sequence[Verdict], order: Sequence[str]) -> LevelTable | None:
    """Build the table of verdicts by level, stacks in a given order; None where there is no verdict by level."""
    levels = tuple(dict.fromkeys(verdict.level for verdict in judgements))
    by_stack = {name: tuple(verdict for verdict in judgements if verdict.system == name) for name in order}
    return LevelTable(levels, tuple((name, row) for name, row in by_stack.items() if row)) if levels else None


def find_tested(results: Results, suite: str) -> dict[str, str]:
    """Return the measure that the verdict of each level is about, and that of captions; none where no level has such a measure."""
    names = {score.measure for score in results.scores if score.suite == suite}
    tested: dict[str, str] = {level: name for level in LEVELS if (name := f"{HABIT_BALANCED}_{level}") in names}
    plane = results.planes.get(suite)
    return {**tested, CAPTIONS: plane.invention} if tested and plane is not None else tested


def level_verdicts(
    results: Results, suite: str, measures: Sequence[Measure], answers: Mapping[str, Sequence[AnsweredItem]]
) -> list[Verdict]:
    """Judge every stack at every level that has habit-balanced accuracy, and its captions, in the order of the run.

    Holm's correction is over the stacks and levels together, over either half of the questions likewise.

    Args:
        results: The figures.
        suite: The suite's name in the run.
        measures: Its measures.
        answers: Answers by system.
    """
    tested = find_tested(results, suite)
    stacks = [outcome for outcome in results.outcomes if (outcome.suite, outcome.role) == (suite, "stack")]
    names = [outcome.system for outcome in stacks]
    sharpened = _sharpen(results, suite, _list_families(tested), names, measures, answers)
    corrected = _correct(sharpened, suite, _list_families(tested), names)
    cases = {
        (outcome.system, level): build_case(corrected, outcome, name, measures, answers, len(stacks) * len(tested))
        for outcome in stacks
        for level, name in tested.items()
    }
    return [dataclasses.replace(judge(_narrow(case, level)), level=level) for (_, level), case in cases.items()]


def _narrow(case: Case, level: str) -> Case:
    """Leave what is about other levels out of a case; what captions invent says nothing about yes and no."""
    scores = [score for score in case.others if case.headline is not None and score.level == case.headline.level]
    return dataclasses.replace(case, others=scores, asks=case.asks and level != CAPTIONS)


def _list_families(tested: Mapping[str, str]) -> list[set[str]]:
    """Return the measures whose p values are corrected together: those of all levels, and those of each half."""
    balanced = set(tested.values())
    halves = [{name.replace(HABIT_BALANCED, half, 1) for name in balanced} - balanced for half in HABIT_HALVES]
    return [balanced, *halves]


def _sharpen(
    results: Results,
    suite: str,
    families: Sequence[Collection[str]],
    stacks: Collection[str],
    measures: Sequence[Measure],
    answers: Mapping[str, Sequence[AnsweredItem]],
) -> Results:
    """Draw small bootstrap p values again with so many resamples that one corrected for its whole family can still be small."""
    by_name = {measure.name: measure for measure in measures}
    scores = list(results.scores)
    for family in families:
        resamples = RESAMPLES_EACH * len(family) * len(stacks)
        for place in _find_places(results, suite, family, stacks):
            score, measure = scores[place], by_name.get(scores[place].measure)
            test = score.against_greedy
            if test is None or measure is None or test.test != BOOTSTRAP or not test.p < SURE:
                continue
            again = compare_measure(
                measure, answers[GREEDY], answers[score.system], resamples=max(RESAMPLES, resamples)
            )
            if again is not None:
                scores[place] = dataclasses.replace(score, against_greedy=dataclasses.replace(test, p=again.p))
    return dataclasses.replace(results, scores=scores)


def _correct(results: Results, suite: str, families: Sequence[Collection[str]], stacks: Collection[str]) -> Results:
    """Apply Holm's correction to the p values of each family, over its measures and all stacks."""
    scores = list(results.scores)
    for family in families:
        places = _find_places(results, suite, family, stacks)
        tests = {str(place): test for place in places if (test := scores[place].against_greedy) is not None}
        for place, test in correct_p_values(tests).items():
            scores[int(place)] = dataclasses.replace(scores[int(place)], against_greedy=test)
    return dataclasses.replace(results, scores=scores)


def _find_places(results: Results, suite: str, family: Collection[str], stacks: Collection[str]) -> list[int]:
    return [
        place
        for place, score in enumerate(results.scores)
        if score.suite == suite and score.system in stacks and score.measure in family
    ]
