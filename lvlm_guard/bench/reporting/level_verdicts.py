"""Verdicts level by level, on habit-balanced accuracy and on captions, corrected over stacks and levels together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.reporting.results import Results
from lvlm_guard.bench.reporting.verdicts import HABIT_BALANCED, HABIT_HALVES, Verdict, build_case, judge
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.scoring.significance import correct_p_values

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
    return LevelTable(levels, tuple((name, own) for name, own in by_stack.items() if own)) if levels else None


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
    corrected = _correct(results, suite, tested, [outcome.system for outcome in stacks])
    return [
        dataclasses.replace(
            judge(build_case(corrected, outcome, name, measures, answers, len(stacks) * len(tested))), level=level
        )
        for outcome in stacks
        for level, name in tested.items()
    ]


def _correct(results: Results, suite: str, tested: Mapping[str, str], stacks: Sequence[str]) -> Results:
    """Correct the p values of the measures of all levels together, and those of each half."""
    families = [set(tested.values())]
    families += [
        {name.replace(HABIT_BALANCED, half, 1) for name in tested.values()} - families[0] for half in HABIT_HALVES
    ]
    scores = list(results.scores)
    for family in families:
        places = {
            str(place): score.against_greedy
            for place, score in enumerate(scores)
            if score.suite == suite
            and score.system in stacks
            and score.measure in family
            and score.against_greedy is not None
        }
        for place, test in correct_p_values(places).items():
            scores[int(place)] = dataclasses.replace(scores[int(place)], against_greedy=test)
    return dataclasses.replace(results, scores=scores)
