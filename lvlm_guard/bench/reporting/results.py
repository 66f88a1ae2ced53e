"""From the raw answers of a run to figures: every measure with its interval, and what each system changed and cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.reporting.answers import describe_systems, read_suite_answers
from lvlm_guard.bench.reporting.comparable import select_comparable
from lvlm_guard.bench.running.choosing import build_suite, check_parser, load_measures
from lvlm_guard.bench.running.store import Record
from lvlm_guard.bench.running.system_files import SystemRefusal
from lvlm_guard.bench.running.systems import BIAS, GREEDY
from lvlm_guard.bench.scoring.fitted_bias import BiasStrength
from lvlm_guard.bench.scoring.frontier import CaptionPlane, build_plane, find_caption_measures
from lvlm_guard.bench.scoring.intervals import Interval, Statistic, by_cluster, interval
from lvlm_guard.bench.scoring.margins import says_yes
from lvlm_guard.bench.scoring.measures import Measure, Rows
from lvlm_guard.bench.scoring.parsers import ours
from lvlm_guard.bench.scoring.scores import auc
from lvlm_guard.bench.scoring.significance import (
    RESAMPLES,
    Changes,
    Significance,
    correct_p_values,
    count_changes,
    significance,
)
from lvlm_guard.bench.suite import Suite
from lvlm_guard.deprecation import moved_names


@dataclass(frozen=True)
class Score:
    """One measure of one system.

    Args:
        suite: The suite's name in the run.
        system: Who answered.
        measure: Name of the measure.
        level: Its level, "all" where it spans them.
        title: A few words for people.
        higher_is_better: None where neither is.
        found: The score and its 95 % bootstrap interval, pictures resampled as wholes.
        n: Answers (or groups of them) that count.
        clusters: Pictures they belong to.
        against_greedy: The difference to plain greedy generate on the same items, and its test; Holm's correction is over
            the stacks of this suite and measure, and over its controls apart. None for greedy itself and where greedy has
            no answers.
    """

    suite: str
    system: str
    measure: str
    level: str
    title: str
    higher_is_better: bool | None
    found: Interval
    n: int
    clusters: int
    against_greedy: Significance | None = None


@dataclass(frozen=True)
class Spent:
    """What the answers cost, measured while they were generated; other work on the machine counts.

    Args:
        seconds: Time in generate.
        tokens: Generated tokens, end tokens included, padding not.
        ms_per_token: Milliseconds per generated token of all rows, prefill included.
        prefill: Forwards of the decoder for a prompt; plain generate has 1.
        decode: Forwards for a token after the first; plain generate has 1.
        rows_per_forward: Rows of a decode forward over plain's.
        ratio: Time over that of greedy for the same batch, median over the batches; None without greedy.
    """

    seconds: float
    tokens: int
    ms_per_token: float
    prefill: float
    decode: float
    rows_per_forward: float
    ratio: float | None


@dataclass(frozen=True)
class Outcome:
    """The state of one system on one suite.

    Args:
        suite: The suite's name in the run.
        system: Who answered.
        role: "stack" or "control".
        answers: Answers that there are.
        items: Items that there are.
        refused: Why it stopped, None where it did not.
        changed: Answers that differ from greedy's; none means that the stack did nothing. None for greedy itself.
        yes_ratio: Share of the yes/no items whose answer says yes; None without such items.
        auc: Chance that the yes-no margin of an item whose truth is yes is above that of one whose truth is no, by level
            and over all; levels without both are left out. Where tokens were demoted, so were their margins.
        spent: What it took; None without answers.
        official: What the suite's own script would print; nothing unless every item is answered.
        skipped: Items without a picture that it skipped, since it needs one.
        skipped_reason: What it said about the first of them.
    """

    suite: str
    system: str
    role: str
    answers: int
    items: int
    refused: SystemRefusal | None = None
    changed: Changes | None = None
    yes_ratio: float | None = None
    auc: Mapping[str, float] = field(default_factory=dict)
    spent: Spent | None = None
    official: Mapping[str, float | None] = field(default_factory=dict)
    skipped: int = 0
    skipped_reason: str = ""

    @property
    def whole(self) -> bool:
        """Whether every item is answered, but for those that were skipped; only then are there scores."""
        return self.answers > 0 and self.answers + self.skipped == self.items


@dataclass(frozen=True)
class Results:
    """The figures of a run.

    Args:
        manifest: What the run is; systems that were computed from other answers are among its systems.
        parsers: How the answers of each suite were read.
        outcomes: One per suite and system.
        scores: One per suite, system and measure, where the system answered everything.
        bias: The strengths of the fitted bias by suite.
        planes: Inventions against recall, of the suites that ask for captions.
        edits: What was edited after the run, as `find_edits` describes it.
    """

    manifest: Mapping[str, Any]
    parsers: Mapping[str, str]
    outcomes: Sequence[Outcome]
    scores: Sequence[Score]
    bias: Mapping[str, Sequence[BiasStrength]] = field(default_factory=dict)
    planes: Mapping[str, CaptionPlane] = field(default_factory=dict)
    edits: Sequence[str] = ()

    def of(self, suite: str, measure: str) -> dict[str, Score]:
        """Return the scores of one measure by system."""
        return {score.system: score for score in self.scores if (score.suite, score.measure) == (suite, measure)}


def score(
    record: Record, parser: str | None = None, data: Path | None = None, *, resamples: int = RESAMPLES
) -> Results:
    """Score a run from its raw answers.

    Args:
        record: The run.
        parser: How to read the answers; by default as the run was started with.
        data: Where the files lie of suites that cannot read answers without them; by default where the run found them.
        resamples: Bootstrap resamples of every difference to greedy; those of a score are 1000.

    Raises:
        InputError: A suite has no such parser, lacks files, or there is no such suite any more.
    """
    place = data or record.data
    suites = {
        name: build_suite(description["name"], description["arguments"])
        for name, description in record.manifest["suites"].items()
    }
    parsers = {
        name: check_parser(suite, parser or record.manifest["suites"][name]["parser"]) for name, suite in suites.items()
    }
    manifest = {**record.manifest, "systems": describe_systems(record)}
    outcomes: list[Outcome] = []
    scores: list[Score] = []
    bias: dict[str, Sequence[BiasStrength]] = {}
    planes: dict[str, CaptionPlane] = {}
    for name, suite in suites.items():
        measured = load_measures(suite, parsers[name], place)
        read = read_suite_answers(record, name)
        answers, bias[name] = read.by_system, read.bias
        scored = _ScoredSuite(record, manifest["systems"], suite, name, parsers[name])
        suite_outcomes = [_outcome(scored, system, answers) for system in answers]
        outcomes += suite_outcomes
        comparable = select_comparable(record, name, answers)
        complete = {outcome.system: comparable[outcome.system] for outcome in suite_outcomes if outcome.whole}
        roles = {outcome.system: outcome.role for outcome in suite_outcomes}
        for measure in measured:
            scores += _scores(name, measure, complete, roles, resamples)
        if (plane := _build_plane(measured, complete, roles, resamples)) is not None:
            planes[name] = plane
    return Results(manifest, parsers, outcomes, scores, bias, planes)


def _build_plane(
    measured: Sequence[Measure],
    answers_by_system: Mapping[str, Sequence[AnsweredItem]],
    roles: Mapping[str, str],
    resamples: int,
) -> CaptionPlane | None:
    """Place systems beside the frontier of shorter captions; what is computed from margins has greedy's captions."""
    pair = find_caption_measures(measured)
    written = {name: answers for name, answers in answers_by_system.items() if name != BIAS}
    return None if pair is None else build_plane(pair, written, roles, GREEDY, resamples)


@dataclass(frozen=True)
class _ScoredSuite:
    """A suite of a run, and how its answers are read."""

    record: Record
    systems: Mapping[str, Any]
    suite: Suite
    name: str
    parser: str


def _outcome(scored: _ScoredSuite, system: str, answers_by_system: Mapping[str, Sequence[AnsweredItem]]) -> Outcome:
    record, name = scored.record, scored.name
    answers, plain = answers_by_system[system], answers_by_system.get(GREEDY, ())
    together = {answer.item.id: answer for answer in plain}
    both = [(together[answer.item.id].text, answer.text) for answer in answers if answer.item.id in together]
    whole = len(answers) == len(record.items[name])
    skipped = record.read_skipped(system, name)
    return Outcome(
        suite=name,
        system=system,
        role=scored.systems[system]["role"],
        answers=len(answers),
        items=len(record.items[name]),
        refused=record.refusal(system, name),
        changed=count_changes(*zip(*both, strict=True)) if both and system != GREEDY else None,
        yes_ratio=_yes_ratio(answers),
        auc=_aucs(answers),
        spent=_spent(record.costs(system, name), record.costs(GREEDY, name) if GREEDY in answers_by_system else []),
        official=scored.suite.official(answers, scored.parser) if whole else {},
        skipped=len(skipped.ids),
        skipped_reason=skipped.reason,
    )


def _yes_ratio(answers: Sequence[AnsweredItem]) -> float | None:
    says = [ours(answer.text) is True for answer in answers if says_yes(answer.item.truth) is not None]
    return sum(says) / len(says) if says else None


def _aucs(answers: Sequence[AnsweredItem]) -> dict[str, float]:
    measured = [answer for answer in answers if answer.margin is not None and says_yes(answer.item.truth) is not None]
    values = {}
    for level in ("all", *dict.fromkeys(answer.item.level for answer in measured)):
        at_level = [answer for answer in measured if level in ("all", answer.item.level)]
        margins = [answer.margin for answer in at_level if answer.margin is not None]
        values[level] = auc(margins, [says_yes(answer.item.truth) is True for answer in at_level])
    return {level: value for level, value in values.items() if not math.isnan(value)}


def _spent(costs: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> Spent | None:
    if not costs:
        return None
    tokens, seconds = (sum(cost[name] for cost in costs) for name in ("tokens", "seconds"))
    weights = [max(cost["tokens"], 1) for cost in costs]
    beside = {cost["batch"]: cost["seconds"] for cost in plain}
    ratios = [cost["seconds"] / beside[cost["batch"]] for cost in costs if beside.get(cost["batch"])]
    prefill, decode, rows = (
        float(np.average([cost[name] for cost in costs], weights=weights))
        for name in ("prefill", "decode", "rows_per_forward")
    )
    ratio = float(np.median(ratios)) if ratios else None
    return Spent(seconds, tokens, 1000 * seconds / max(tokens, 1), prefill, decode, rows, ratio)


def _scores(
    suite: str,
    measure: Measure,
    answers_by_system: Mapping[str, Sequence[AnsweredItem]],
    roles: Mapping[str, str],
    resamples: int,
) -> list[Score]:
    """Score one measure of all systems, and compare each with greedy."""
    rows = {system: measure.rows(answers) for system, answers in answers_by_system.items()}
    tests: dict[str, Significance] = {}
    for role in dict.fromkeys(roles.values()):
        names = [
            name for name in answers_by_system if roles[name] == role and name != GREEDY and GREEDY in answers_by_system
        ]
        comparisons = {name: _compare_rows(rows[GREEDY], rows[name], measure.statistic, resamples) for name in names}
        tests |= correct_p_values(
            {name: comparison for name, comparison in comparisons.items() if comparison is not None}
        )
    return [
        _score(suite, system, measure, counted, tests.get(system)) for system, counted in rows.items() if counted[0]
    ]


def _score(suite: str, system: str, measure: Measure, rows: Rows, test: Significance | None) -> Score:
    names, clusters, counts = rows
    return Score(
        suite=suite,
        system=system,
        measure=measure.name,
        level=measure.level,
        title=measure.title,
        higher_is_better=measure.higher_is_better,
        found=interval(by_cluster(clusters, counts), measure.statistic),
        n=len(names),
        clusters=len(set(clusters)),
        against_greedy=test,
    )


def compare_measure(
    measure: Measure, before: Sequence[AnsweredItem], after: Sequence[AnsweredItem], *, resamples: int = RESAMPLES
) -> Significance | None:
    """Compare a measure between two ways to answer the same items; None where nothing is counted.

    What only one side counts, such as a group that the other leaves out, is nothing on the other.
    """
    return _compare_rows(measure.rows(before), measure.rows(after), measure.statistic, resamples)


def _compare_rows(before: Rows, after: Rows, statistic: Statistic, resamples: int = RESAMPLES) -> Significance | None:
    rows = [{name: (cluster, counts) for name, cluster, counts in zip(*side, strict=True)} for side in (before, after)]
    clusters = {name: cluster for side in rows for name, (cluster, _) in side.items()}
    if not clusters:
        return None
    width = max(len(counts) for side in rows for _, counts in side.values())
    nothing = ("", (0.0,) * width)
    old, new = ([side.get(name, nothing)[1] for name in clusters] for side in rows)
    return significance(old, new, list(clusters.values()), statistic, resamples=resamples)


def to_plain(value: Any) -> Any:
    """Turn results, or parts of them, into JSON values; numbers that are not finite become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: to_plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(element) for element in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


__getattr__ = moved_names(__name__, {"compared": "lvlm_guard.bench.reporting.results:compare_measure"})
