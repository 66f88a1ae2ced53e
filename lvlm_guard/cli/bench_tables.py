"""Tables of `lvlm-guard bench` for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from lvlm_guard.bench.reporting.comparable import describe_skipped
from lvlm_guard.bench.reporting.comparing import Comparison
from lvlm_guard.bench.reporting.judging import SuiteVerdicts
from lvlm_guard.bench.reporting.results import Outcome, Results, Score
from lvlm_guard.bench.running.manifest import describe_left_out, describe_model
from lvlm_guard.bench.scoring.intervals import format_interval
from lvlm_guard.bench.scoring.significance import Significance
from lvlm_guard.cli.tables import Cell, count_of, show_table

LEVEL = 0.05
MOST = 4
"""Measures that the overview of a suite shows: the first of each level, headline first."""

STYLES = {True: "green", False: "red", None: "dim"}


def format_suites(described: Sequence[Mapping[str, Any]]) -> str:
    """Write a paragraph for each suite: nothing is cut off, however narrow the window."""
    return "\n\n".join("\n".join(_paragraph(suite)) for suite in described)


def _paragraph(suite: Mapping[str, Any]) -> Iterator[str]:
    yield f"{suite['name']}: {suite['title']}"
    yield f"  levels     {', '.join(suite['levels'])}"
    yield f"  parsers    {', '.join(suite['parsers'])} (default: the first)"
    if suite["arguments"]:
        yield f"  arguments  {', '.join(f'{name}={value!r}' for name, value in suite['arguments'].items())}"
    yield f"  licence    {suite['licence']}{', ' + suite['homepage'] if suite['homepage'] else ''}"
    yield f"  from       {suite['distribution']}"
    for need in suite["required"]:
        yield f"  needs      {need['path']}{' (optional)' if need['optional'] else ''}: {need['what']}, from {need['source']}"
    if not suite["required"]:
        yield "  needs      nothing in the data folder"


def show(results: Results, console: Console, judged: Mapping[str, SuiteVerdicts] | None = None) -> None:
    """Print all systems of each suite, every stack against greedy, the verdicts, and the notes."""
    for suite in results.manifest["suites"]:
        _show_overview(results, suite, console)
        for outcome in results.outcomes:
            if outcome.suite == suite and outcome.role == "stack" and outcome.whole:
                _show_against_greedy(results, outcome, console)
        _show_verdicts(suite, (judged or {}).get(suite), console)
    show_warnings(results.edits, console)
    for line in notes(results):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _show_verdicts(suite: str, judged: SuiteVerdicts | None, console: Console) -> None:
    """Print the finding on every stack, its reason, and the findings by level; nothing where there is no stack."""
    if judged is None or not judged.headline:
        return
    levels = list(dict.fromkeys(verdict.level for verdict in judged.levels))
    kinds = {(verdict.system, verdict.level): verdict.kind for verdict in judged.levels}
    rows = [
        (verdict.system, verdict.kind, *(kinds.get((verdict.system, level), "") for level in levels), verdict.why)
        for verdict in judged.headline
    ]
    show_table(console, ("stack", "verdict", *levels, "why"), rows, title=f"{suite}: verdicts", running=("why",))


def show_warnings(lines: Sequence[str], console: Console) -> None:
    """Print lines that nobody should miss."""
    for line in lines:
        console.print(Text(f"Warning: {line}", "bold red"), soft_wrap=True, highlight=False)


def notes(results: Results) -> list[str]:
    """List what was switched off, refused, changed nothing, is unfinished or could not be read."""
    lines = [f"Switched off: {', '.join(off)}." for off in [results.manifest["without"]] if off]
    for suite, description in results.manifest["suites"].items():
        if (left_out := describe_left_out(description)) is not None:
            lines.append(f"{suite}: left out {left_out}")
        if description["unusable_rows"]:
            lines.append(
                f"{suite}: {count_of(description['unusable_rows'], 'row')} could not be used, first {description['problems'][0]}"
            )
    for outcome in results.outcomes:
        name = f"{outcome.suite}, {outcome.system}"
        if (skipped := describe_skipped(outcome)) is not None:
            lines.append(f"{name} skipped {skipped}")
        if outcome.refused is not None:
            lines.append(f"{name} refused: {outcome.refused.reason}")
        elif not outcome.whole:
            lines.append(f"{name} is unfinished: {outcome.answers} of {outcome.items} answers, no scores.")
        elif outcome.changed is not None and outcome.changed.is_none:
            lines.append(f"{name} changed nothing: every answer is greedy's.")
    lines.append(f"Model: {describe_model(results.manifest)}. Figures say nothing about other models.")
    return lines


def _show_overview(results: Results, suite: str, console: Console) -> None:
    description = results.manifest["suites"][suite]
    headlines = _headlines([score for score in results.scores if score.suite == suite])
    counts = f"{count_of(description['items'], 'item')}, {count_of(description['pictures'], 'picture')}"
    skips = any(outcome.skipped for outcome in results.outcomes if outcome.suite == suite)
    headings = ("system", "decoding", *headlines, "yes", "AUC", "changed", "time", *(["skipped"] if skips else []))
    rows = []
    for outcome in results.outcomes:
        if outcome.suite == suite:
            cells = [_interval(results.of(suite, measure).get(outcome.system)) for measure in headlines]
            decoding = results.manifest["systems"][outcome.system]["decoding"]
            skipped = [f"{outcome.skipped} of {outcome.items}" if outcome.skipped else ""] if skips else []
            rows.append((outcome.system, decoding, *cells, *_format_rest(outcome), *skipped))
    show_table(console, headings, rows, title=f"{suite}: {counts}, parser {results.parsers[suite]}")


def _headlines(scores: Sequence[Score]) -> list[str]:
    """Return the first measure of the suite and the first of every level."""
    firsts = {score.level: score.measure for score in reversed(scores)}
    order = list(dict.fromkeys(score.measure for score in scores))
    return sorted(firsts.values(), key=order.index)[:MOST]


def _format_rest(outcome: Outcome) -> tuple[str, ...]:
    ratio = outcome.spent.ratio if outcome.spent is not None else None
    return (
        _number(outcome.yes_ratio),
        _number(outcome.auc.get("all")),
        "" if outcome.changed is None else f"{outcome.changed.share:.1%}",
        "" if ratio is None else f"{ratio:.2f}x",
    )


def _show_against_greedy(results: Results, outcome: Outcome, console: Console) -> None:
    """Print a table of one stack, every measure beside greedy's."""
    title = f"{outcome.suite}: {outcome.system} against greedy"
    headings = ("level", "measure", "greedy", outcome.system, "difference [95 %]", "p (Holm)", "n")
    rows: list[tuple[Cell, ...]] = []
    plain = {
        score.measure: score for score in results.scores if (score.suite, score.system) == (outcome.suite, "greedy")
    }
    for score in results.scores:
        test = score.against_greedy
        if (score.suite, score.system) == (outcome.suite, outcome.system) and test is not None:
            aim = {True: "", False: " (lower is better)", None: " (neither is better)"}[score.higher_is_better]
            before = _number(plain[score.measure].found.value) if score.measure in plain else ""
            cells = (score.title + aim, before, _number(score.found.value))
            rows.append((score.level, *cells, *_format_test(test, score.higher_is_better), str(score.n)))
    show_table(console, headings, rows, title=title, running=("measure",))


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print every measure of every system in both runs."""
    console.print("Before: {}. After: {}.".format(*comparison.models), soft_wrap=True, highlight=False, markup=False)
    for suite, changed in comparison.changed.items():
        headings = ("system", "measure", "before", "after", "difference [95 %]", "p (Holm)")
        rows: list[tuple[Cell, ...]] = []
        for pair in comparison.pairs:
            if pair.suite == suite:
                values = (_number(pair.before), _number(pair.after))
                cells = _format_test(pair.test, pair.higher_is_better)
                rows.append((pair.system, f"{pair.level}: {pair.measure}", *values, *cells))
        show_table(console, headings, rows, title=suite, running=("measure",))
        for system, one_changed in changed.items():
            console.print(f"{suite}, {system}: {one_changed.verdict}", highlight=False, markup=False)
    show_warnings(comparison.warnings, console)
    for line in comparison.left_out:
        console.print(f"Left out: {line}", soft_wrap=True, highlight=False, markup=False)


def _format_test(test: Significance, higher_is_better: bool | None) -> tuple[Cell, Cell]:
    """Write the difference with its interval, coloured where it is certain, and the corrected p value."""
    change, p = test.difference, test.p if test.adjusted_p is None else test.adjusted_p
    better = (change.value > 0) == higher_is_better if higher_is_better is not None and p < LEVEL else None
    figures = format_interval(change, test.clusters, signed=True)
    return Text(figures, STYLES[better]), "\u2013" if math.isnan(p) else f"{p:.3f}"


def _interval(score: Score | None) -> str:
    return "" if score is None else format_interval(score.found, score.clusters)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
