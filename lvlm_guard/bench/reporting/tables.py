"""The figures of a report as rows: an overview of all systems, and every measure with what belongs beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from lvlm_guard.bench.reporting.charts import number, role_of
from lvlm_guard.bench.reporting.results import Outcome, Results, Score
from lvlm_guard.bench.reporting.verdicts import SURE, corrected, is_better, is_worse
from lvlm_guard.bench.scoring.frontier import COVERAGE
from lvlm_guard.bench.scoring.habits import are_read_together
from lvlm_guard.bench.scoring.intervals import format_interval
from lvlm_guard.bench.scoring.significance import Significance, find_resolution

MOST_HEADLINES = 4
AIMS = {True: "higher is better", False: "lower is better", None: "neither is better"}


@dataclass(frozen=True)
class Column:
    """A column: what stands above it and what that means; `text` where it holds words."""

    title: str
    means: str = ""
    text: bool = False


@dataclass(frozen=True)
class Cell:
    """A figure as it is shown, what it is sorted by, and whether it is "better", "worse" or neither (empty)."""

    label: str
    key: str
    mark: str = ""


@dataclass(frozen=True)
class TableRow:
    """One system."""

    system: str
    role: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table of systems.

    Args:
        name: The measure's, or empty.
        title: What it shows.
        level: The level of its measure, or empty.
        aim: Which way is better, or empty.
        columns: Without that of the systems.
        rows: The systems.
        groups: Titles above several columns and how many; none where that is not needed.
    """

    name: str
    title: str
    level: str
    aim: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    groups: tuple[tuple[str, int], ...] = ()


CHANGED = Column("changed", "share of the answers that differ from greedy's")
BESIDES = (
    Column("yes", "share of yes among the answers to yes/no questions"),
    Column("AUC", "chance that the yes-no margin of a true yes is above that of a true no"),
    CHANGED,
    Column("tokens", "generated tokens per answer"),
    Column("time", "time over greedy's for the same batch, median"),
    Column("prefill", "forwards of the decoder for a prompt; greedy has 1"),
    Column("decode", "forwards of the decoder per token; greedy has 1"),
    Column("ms/token", "milliseconds per generated token, prompt included"),
)
ANSWERS = 4
"""How many of them are about answers; the others are about cost."""

TESTED = (
    Column("score [95 %]", "the score and its bootstrap interval, pictures resampled as wholes"),
    Column("minus greedy [95 %]", "difference to greedy on the same items"),
    Column("p", "of the paired test"),
    Column("p, Holm", "corrected for the other stacks, or for the other controls"),
    Column(
        "visible from", "about the smallest difference to greedy that so many answers and pictures tell from chance"
    ),
)


def overview(results: Results, suite: str, order: Sequence[str]) -> Table:
    """Build the table of all systems: the first measures of every level, what each system changed and what it cost."""
    outcomes = {outcome.system: outcome for outcome in results.outcomes if outcome.suite == suite}
    headlines = _choose_headlines(results, suite)
    columns = tuple(
        Column(headline.title, f"{headline.level}, {AIMS[headline.higher_is_better]}") for headline in headlines
    )
    rows = tuple(
        TableRow(
            name,
            role_of(outcomes[name]),
            (
                *(_score(results.of(suite, headline.measure).get(name)) for headline in headlines),
                *_besides(outcomes[name]),
            ),
        )
        for name in order
    )
    return Table("", "all systems", "", "", (*columns, *BESIDES), rows, _groups(headlines))


def _groups(headlines: Sequence[Score]) -> tuple[tuple[str, int], ...]:
    """Return the titles over neighbouring columns: levels, answers and cost."""
    names = {"all": "all levels"}
    levels = [
        (names.get(level, level), len(list(columns)))
        for level, columns in groupby(headline.level for headline in headlines)
    ]
    return (*levels, ("answers", ANSWERS), ("cost", len(BESIDES) - ANSWERS))


def measures(results: Results, suite: str, order: Sequence[str]) -> list[Table]:
    """Build a table for each measure, in the order of the suite."""
    return [_measure(results, suite, score, order) for score in _firsts(results, suite).values()]


def _firsts(results: Results, suite: str) -> dict[str, Score]:
    """Return any score of each measure, in the order of the suite."""
    firsts: dict[str, Score] = {}
    for score in results.scores:
        if score.suite == suite:
            firsts.setdefault(score.measure, score)
    return firsts


def _choose_headlines(results: Results, suite: str) -> list[Score]:
    """Choose the first measure of each level that has a better direction, each followed by those to read beside it."""
    every = _firsts(results, suite)
    heads: dict[str, Score] = {}
    for score in every.values():
        if score.higher_is_better is not None:
            heads.setdefault(score.level, score)
    captions = [score for score in every.values() if score.higher_is_better is False and _recalls(score, every)]
    chosen = [*list(heads.values())[:MOST_HEADLINES], *captions[:1]]
    shown_scores = {score.measure: score for head in chosen for score in (head, *beside(head, every))}
    wanted_scores = {
        name: score for name, score in shown_scores.items() if (score.level, name) != ("all", "yes_ratio")
    }  # the overview shows it in a column of its own
    levels = list(dict.fromkeys(score.level for score in chosen))
    return sorted(wanted_scores.values(), key=lambda score: levels.index(score.level))


def _recalls(score: Score, every: Mapping[str, Score]) -> bool:
    return any(neighbour.higher_is_better for neighbour in beside(score, every))


def beside(score: Score, every: Mapping[str, Score]) -> list[Score]:
    """Return the measures to read beside a score: its halves, share of yes or length, and recall where less is better.

    They are those of the same level that count the same answers, or one half of them.
    """
    return [
        neighbour
        for neighbour in every.values()
        if neighbour.level == score.level
        and neighbour.measure != score.measure
        and (are_read_together(score.measure, neighbour.measure) or _shares_answers(score, neighbour))
    ]


def _shares_answers(score: Score, neighbour: Score) -> bool:
    belongs = neighbour.higher_is_better is None or (
        score.higher_is_better is False and neighbour.measure.startswith(COVERAGE)
    )
    return neighbour.n == score.n and belongs


def _measure(results: Results, suite: str, first: Score, order: Sequence[str]) -> Table:
    outcomes = {outcome.system: outcome for outcome in results.outcomes if outcome.suite == suite}
    scores = results.of(suite, first.measure)
    neighbours = beside(first, _firsts(results, suite)) if first.higher_is_better is not None else []
    columns = (
        *TESTED,
        *(Column(neighbour.title, AIMS[neighbour.higher_is_better]) for neighbour in neighbours),
        CHANGED,
        Column("n"),
    )
    rows = tuple(
        TableRow(
            name,
            role_of(outcomes[name]),
            (
                *_format_test(
                    scores[name], sum(role_of(outcomes[system]) == role_of(outcomes[name]) for system in scores)
                ),
                *(_score(results.of(suite, neighbour.measure).get(name)) for neighbour in neighbours),
                _changed(outcomes[name]),
                Cell(str(scores[name].n), str(scores[name].n)),
            ),
        )
        for name in order
        if name in scores
    )
    return Table(first.measure, first.title, first.level, AIMS[first.higher_is_better], columns, rows)


def _format_test(score: Score, comparisons: int) -> tuple[Cell, ...]:
    value = Cell(format_interval(score.found, score.clusters), _key(score.found.value))
    if (test := score.against_greedy) is None:
        return (value, *(_plain(None) for _ in range(4)))
    change, mark = test.difference, _mark(score)
    figures = format_interval(change, test.clusters, signed=True)
    p, p_corrected = test.p, corrected(test)
    return (
        value,
        Cell(figures, _key(change.value), mark),
        _chance(p),
        _chance(p_corrected, mark),
        _least(score, test, comparisons),
    )


def _least(score: Score, test: Significance, comparisons: int) -> Cell:
    """Say how small a difference could have been seen; nothing where that is not known."""
    is_share = score.found.value <= 1
    least = find_resolution(test, comparisons, SURE, span=1.0 if is_share else 0.0)
    if is_share and least >= 1:
        return Cell("none", repr(1.0))
    return _plain(least if least > 0 else None)


def _chance(p: float, mark: str = "") -> Cell:
    """Write a p value; tiny ones as an upper bound."""
    return Cell("<0.001" if p < 0.001 else number(p), _key(p), mark)  # noqa: PLR2004 - as many digits as are shown


def _score(score: Score | None) -> Cell:
    return _plain(None) if score is None else Cell(number(score.found.value), _key(score.found.value), _mark(score))


def _mark(score: Score) -> str:
    return "better" if is_better(score) else "worse" if is_worse(score) else ""


def _besides(outcome: Outcome) -> tuple[Cell, ...]:
    spent = outcome.spent
    figures = (spent.ratio, spent.prefill, spent.decode, spent.ms_per_token) if spent else (None,) * 4
    tokens = spent.tokens / outcome.answers if spent and outcome.answers else None
    return (
        _plain(outcome.yes_ratio),
        _plain(outcome.auc.get("all")),
        _changed(outcome),
        _plain(tokens, 1),
        *(_plain(figure, 2) for figure in figures),
    )


def _changed(outcome: Outcome) -> Cell:
    share = None if outcome.changed is None else outcome.changed.share
    return _plain(None) if share is None else Cell(f"{share:.1%}", _key(share))


def _plain(value: float | None, digits: int = 3) -> Cell:
    return Cell(number(value, digits), _key(value))


def _key(value: float | None) -> str:
    """Return what a script sorts by; empty values sort last."""
    return "" if number(value) == number(None) else repr(float(value or 0.0))
