"""Every verdict on a run: on each suite's headline, and level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.reporting.answers import read_suite_answers
from lvlm_guard.bench.reporting.comparable import select_comparable
from lvlm_guard.bench.reporting.level_verdicts import level_verdicts
from lvlm_guard.bench.reporting.results import Results, to_plain
from lvlm_guard.bench.reporting.verdicts import Verdict, verdicts
from lvlm_guard.bench.running.choosing import build_suite, load_measures
from lvlm_guard.bench.running.store import Record
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.suite import Suite


@dataclass(frozen=True)
class SuiteVerdicts:
    """Verdicts on the stacks of one suite, in the order of the run.

    Args:
        headline: One for each stack, on the suite's headline.
        levels: One for each stack and level that has habit-balanced accuracy, and on captions.
    """

    headline: Sequence[Verdict]
    levels: Sequence[Verdict]


def judge_suite(
    results: Results, suite: str, measures: Sequence[Measure], answers: Mapping[str, Sequence[AnsweredItem]]
) -> SuiteVerdicts:
    """Judge every stack on one suite; the arguments are those of `verdicts`."""
    return SuiteVerdicts(verdicts(results, suite, measures, answers), level_verdicts(results, suite, measures, answers))


def judge_run(record: Record, results: Results, data: Path | None = None) -> dict[str, SuiteVerdicts]:
    """Judge every stack on every suite of a run.

    Args:
        record: The run, for its answers.
        results: Its figures.
        data: Where the suites' files lie; by default where the run found them.
    """
    judged = {}
    for name in record.suites:
        _, measures, answers = read_suite(record, results, name, data or record.data)
        judged[name] = judge_suite(results, name, measures, answers)
    return judged


def read_suite(
    record: Record, results: Results, name: str, data: Path | None
) -> tuple[Suite, Sequence[Measure], Mapping[str, Sequence[AnsweredItem]]]:
    """Return a suite of a run, its measures as the results were read, and the answers by system that can be compared."""
    description = record.manifest["suites"][name]
    suite = build_suite(description["name"], description["arguments"])
    answers = select_comparable(record, name, read_suite_answers(record, name).by_system)
    return suite, load_measures(suite, results.parsers[name], data), answers


def list_verdicts(judged: Mapping[str, SuiteVerdicts]) -> list[dict[str, Any]]:
    """Return every verdict as plain values: suite, system, kind, why and level, which is "all" for the headline."""
    return [
        {**to_plain(verdict), "level": verdict.level or "all"}
        for of_suite in judged.values()
        for verdict in (*of_suite.headline, *of_suite.levels)
    ]
