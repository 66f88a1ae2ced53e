"""From the raw answers of a run to figures: every measure with its interval, and what each system changed and cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lvlm_guard.bench.items import Said
from lvlm_guard.bench.running.choosing import checked_parser, made_suite, measures
from lvlm_guard.bench.running.store import Record, Refusal
from lvlm_guard.bench.running.systems import GREEDY
from lvlm_guard.bench.scoring.intervals import Interval, Statistic, by_cluster, interval
from lvlm_guard.bench.scoring.margins import says_yes
from lvlm_guard.bench.scoring.measures import Measure, Rows
from lvlm_guard.bench.scoring.parsers import ours
from lvlm_guard.bench.scoring.scores import auc
from lvlm_guard.bench.scoring.significance import (
    RESAMPLES,
    Changes,
    Significance,
    adjusted,
    changes,
    significance,
)
from lvlm_guard.bench.suite import Suite


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
    """What the answers took, as measured while they were made; other work on the machine counts.

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
    """What became of one system on one suite.

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
        official: What the suite's own script would print.
    """

    suite: str
    system: str
    role: str
    answers: int
    items: int
    refused: Refusal | None = None
    changed: Changes | None = None
    yes_ratio: float | None = None
    auc: Mapping[str, float] = field(default_factory=dict)
    spent: Spent | None = None
    official: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every item is answered; only then are there scores."""
        return self.answers == self.items


@dataclass(frozen=True)
class Results:
    """The figures of a run.

    Args:
        manifest: What the run is.
        parsers: How the answers of each suite were read.
        outcomes: One per suite and system.
        scores: One per suite, system and measure, where the system answered everything.
    """

    manifest: Mapping[str, Any]
    parsers: Mapping[str, str]
    outcomes: Sequence[Outcome]
    scores: Sequence[Score]

    def of(self, suite: str, measure: str) -> dict[str, Score]:
        """The scores of one measure by system."""
        return {one.system: one for one in self.scores if (one.suite, one.measure) == (suite, measure)}


def score(
    record: Record, parser: str | None = None, data: Path | None = None, *, resamples: int = RESAMPLES
) -> Results:
    """Score a run from its raw answers.

    Args:
        record: The run.
        parser: How to read the answers; as the run was begun unless told.
        data: Where the files lie of suites that cannot read answers without them; where the run found them unless told.
        resamples: Bootstrap resamples of every difference to greedy; those of a score are 1000.

    Raises:
        InputError: A suite has no such parser, lacks files, or there is no such suite any more.
    """
    place = data or record.data
    made = {name: made_suite(told["name"], told["arguments"]) for name, told in record.manifest["suites"].items()}
    parsers = {
        name: checked_parser(suite, parser or record.manifest["suites"][name]["parser"]) for name, suite in made.items()
    }
    outcomes: list[Outcome] = []
    scores: list[Score] = []
    for name, suite in made.items():
        measured = measures(suite, parsers[name], place)
        said = {system: record.said(system, name) for system in record.systems}
        found = [_outcome(record, suite, name, system, said, parsers[name]) for system in record.systems]
        outcomes += found
        complete = {one.system: said[one.system] for one in found if one.whole}
        for measure in measured:
            roles = {outcome.system: outcome.role for outcome in found}
            scores += _scores(name, measure, complete, roles, resamples)
    return Results(record.manifest, parsers, outcomes, scores)


def _outcome(
    record: Record, suite: Suite, name: str, system: str, said: Mapping[str, Sequence[Said]], parser: str
) -> Outcome:
    own, plain = said[system], said.get(GREEDY, ())
    together = {one.item.id: one for one in plain}
    both = [(together[one.item.id].text, one.text) for one in own if one.item.id in together]
    whole = len(own) == len(record.items[name])
    return Outcome(
        suite=name,
        system=system,
        role=record.manifest["systems"][system]["role"],
        answers=len(own),
        items=len(record.items[name]),
        refused=record.refusal(system, name),
        changed=changes(*zip(*both, strict=True)) if both and system != GREEDY else None,
        yes_ratio=_yes_ratio(own),
        auc=_aucs(own),
        spent=_spent(record.costs(system, name), record.costs(GREEDY, name) if GREEDY in said else []),
        official=suite.official(own, parser) if whole else {},
    )


def _yes_ratio(said: Sequence[Said]) -> float | None:
    heard = [ours(one.text) is True for one in said if says_yes(one.item.truth) is not None]
    return sum(heard) / len(heard) if heard else None


def _aucs(said: Sequence[Said]) -> dict[str, float]:
    known = [one for one in said if one.margin is not None and says_yes(one.item.truth) is not None]
    found = {}
    for level in ("all", *dict.fromkeys(one.item.level for one in known)):
        asked = [one for one in known if level in ("all", one.item.level)]
        margins = [one.margin for one in asked if one.margin is not None]
        found[level] = auc(margins, [says_yes(one.item.truth) is True for one in asked])
    return {level: value for level, value in found.items() if not math.isnan(value)}


def _spent(costs: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> Spent | None:
    if not costs:
        return None
    tokens, seconds = (sum(one[name] for one in costs) for name in ("tokens", "seconds"))
    weights = [max(one["tokens"], 1) for one in costs]
    beside = {one["batch"]: one["seconds"] for one in plain}
    ratios = [one["seconds"] / beside[one["batch"]] for one in costs if beside.get(one["batch"])]
    prefill, decode, rows = (
        float(np.average([one[name] for one in costs], weights=weights))
        for name in ("prefill", "decode", "rows_per_forward")
    )
    ratio = float(np.median(ratios)) if ratios else None
    return Spent(seconds, tokens, 1000 * seconds / max(tokens, 1), prefill, decode, rows, ratio)


def _scores(
    suite: str, measure: Measure, said: Mapping[str, Sequence[Said]], roles: Mapping[str, str], resamples: int
) -> list[Score]:
    """One measure of all systems, compared with greedy."""
    rows = {system: measure.rows(answers) for system, answers in said.items()}
    tests: dict[str, Significance] = {}
    for role in dict.fromkeys(roles.values()):
        others = [name for name in said if roles[name] == role and name != GREEDY and GREEDY in said]
        found = {name: _compared(rows[GREEDY], rows[name], measure.statistic, resamples) for name in others}
        tests |= adjusted({name: one for name, one in found.items() if one is not None})
    return [_score(suite, system, measure, own, tests.get(system)) for system, own in rows.items() if own[0]]


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


def compared(measure: Measure, before: Sequence[Said], after: Sequence[Said]) -> Significance | None:
    """The difference of a measure between two ways to answer the same items; None where nothing is counted.

    What only one side counts, such as a group that the other leaves out, is nothing on the other.
    """
    return _compared(measure.rows(before), measure.rows(after), measure.statistic)


def _compared(before: Rows, after: Rows, statistic: Statistic, resamples: int = RESAMPLES) -> Significance | None:
    rows = [{name: (cluster, counts) for name, cluster, counts in zip(*one, strict=True)} for one in (before, after)]
    clusters = {name: cluster for one in rows for name, (cluster, _) in one.items()}
    if not clusters:
        return None
    width = max(len(counts) for one in rows for _, counts in one.values())
    nothing = ("", (0.0,) * width)
    old, new = ([one.get(name, nothing)[1] for name in clusters] for one in rows)
    return significance(old, new, list(clusters.values()), statistic, resamples=resamples)


def to_plain(value: Any) -> Any:
    """Results, or parts of them, as JSON holds them; what is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: to_plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
