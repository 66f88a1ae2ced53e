"""Tables of `lvlm-guard bench` for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lvlm_guard.bench.reporting.comparing import Comparison
from lvlm_guard.bench.reporting.results import Outcome, Results, Score
from lvlm_guard.bench.running.manifest import told_model
from lvlm_guard.bench.scoring.significance import Significance

LEVEL = 0.05
MOST = 4
"""Measures that the overview of a suite shows: the first of each level, headline first."""

STYLES = {True: "green", False: "red", None: "dim"}


def of_suites(described: Sequence[Mapping[str, Any]]) -> str:
    """What there is, a paragraph for each suite: nothing is cut off, however narrow the window."""
    return "\n\n".join("\n".join(_paragraph(one)) for one in described)


def _paragraph(one: Mapping[str, Any]) -> Iterator[str]:
    yield f"{one['name']}: {one['title']}"
    yield f"  levels     {', '.join(one['levels'])}"
    yield f"  parsers    {', '.join(one['parsers'])} (the first unless told)"
    if one["arguments"]:
        yield f"  arguments  {', '.join(f'{name}={value!r}' for name, value in one['arguments'].items())}"
    yield f"  licence    {one['licence']}{', ' + one['homepage'] if one['homepage'] else ''}"
    yield f"  from       {one['distribution']}"
    for need in one["required"]:
        yield f"  needs      {need['path']}{' (optional)' if need['optional'] else ''}: {need['what']}, from {need['source']}"
    if not one["required"]:
        yield "  needs      nothing"


def show(results: Results, console: Console) -> None:
    """All systems of each suite, every stack against greedy, and what must be known besides."""
    for suite in results.manifest["suites"]:
        console.print(_overview(results, suite))
        for outcome in results.outcomes:
            if outcome.suite == suite and outcome.role == "stack" and outcome.whole:
                console.print(_against_greedy(results, outcome))
    for line in notes(results):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def notes(results: Results) -> list[str]:
    """What was switched off, what refused, what changed nothing, what is unfinished, what could not be read."""
    lines = [f"Switched off: {', '.join(off)}." for off in [results.manifest["without"]] if off]
    for suite, told in results.manifest["suites"].items():
        if told["unusable_rows"]:
            lines.append(f"{suite}: {told['unusable_rows']} rows could not be used, first {told['problems'][0]}")
    for one in results.outcomes:
        name = f"{one.suite}, {one.system}"
        if one.refused is not None:
            lines.append(f"{name} refused: {one.refused.reason}")
        elif not one.whole:
            lines.append(f"{name} is unfinished: {one.answers} of {one.items} answers, no scores.")
        elif one.changed is not None and one.changed.is_none:
            lines.append(f"{name} changed nothing: every answer is greedy's.")
    lines.append(f"Model: {told_model(results.manifest)}. Figures say nothing about other models.")
    return lines


def _overview(results: Results, suite: str) -> Table:
    told = results.manifest["suites"][suite]
    shown = _headlines([one for one in results.scores if one.suite == suite])
    title = f"{suite}: {told['items']} items, {told['pictures']} pictures, parser {results.parsers[suite]}"
    table = Table("system", "decoding", *shown, "yes", "AUC", "changed", "time", title=escape(title))
    for one in results.outcomes:
        if one.suite == suite:
            cells = [_interval(results.of(suite, measure).get(one.system)) for measure in shown]
            decoding = results.manifest["systems"][one.system]["decoding"]
            table.add_row(escape(one.system), decoding, *cells, *_besides(one))
    return table


def _headlines(scores: Sequence[Score]) -> list[str]:
    """The first measure of the suite and the first of every level."""
    firsts = {one.level: one.measure for one in reversed(scores)}
    order = list(dict.fromkeys(one.measure for one in scores))
    return sorted(firsts.values(), key=order.index)[:MOST]


def _besides(outcome: Outcome) -> tuple[str, ...]:
    ratio = outcome.spent.ratio if outcome.spent is not None else None
    return (
        _number(outcome.yes_ratio),
        _number(outcome.auc.get("all")),
        "" if outcome.changed is None else f"{outcome.changed.share:.1%}",
        "" if ratio is None else f"{ratio:.2f}x",
    )


def _against_greedy(results: Results, outcome: Outcome) -> Table:
    """One stack, every measure beside greedy's."""
    title = f"{outcome.suite}: {outcome.system} against greedy"
    columns = ("level", "measure", "greedy", outcome.system, "difference [95 %]", "p (Holm)", "n")
    table = Table(*map(escape, columns), title=escape(title))
    plain = {one.measure: one for one in results.scores if (one.suite, one.system) == (outcome.suite, "greedy")}
    for one in results.scores:
        test = one.against_greedy
        if (one.suite, one.system) == (outcome.suite, outcome.system) and test is not None:
            aim = {True: "", False: " (lower is better)", None: " (neither is better)"}[one.higher_is_better]
            before = _number(plain[one.measure].found.value) if one.measure in plain else ""
            told = (escape(one.title + aim), before, _number(one.found.value))
            table.add_row(one.level, *told, *_tested(test, one.higher_is_better), str(one.n))
    return table


def show_comparison(found: Comparison, console: Console) -> None:
    """Every measure of every system in both runs."""
    console.print("Before: {}. After: {}.".format(*found.models), soft_wrap=True, highlight=False, markup=False)
    for suite, changed in found.changed.items():
        table = Table("system", "measure", "before", "after", "difference [95 %]", "p (Holm)", title=escape(suite))
        for one in found.pairs:
            if one.suite == suite:
                values = (_number(one.before), _number(one.after))
                cells = _tested(one.test, one.higher_is_better)
                table.add_row(escape(one.system), escape(f"{one.level}: {one.measure}"), *values, *cells)
        console.print(table)
        for system, one_changed in changed.items():
            console.print(f"{suite}, {system}: {one_changed.verdict}", highlight=False, markup=False)
    for line in found.left_out:
        console.print(f"Left out: {line}", soft_wrap=True, highlight=False, markup=False)


def _tested(test: Significance, higher_is_better: bool | None) -> tuple[str, str]:
    """The difference with its interval, coloured where it is certain after correction, and the corrected p value."""
    change, p = test.difference, test.p if test.adjusted_p is None else test.adjusted_p
    better = (change.value > 0) == higher_is_better if higher_is_better is not None and p < LEVEL else None
    told = f"{change.value:+.3f} \\[{change.low:+.3f}, {change.high:+.3f}]"
    return f"[{STYLES[better]}]{told}[/]", f"{p:.3f}"


def _interval(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{_number(score.found.value)} \\[{_number(score.found.low)}, {_number(score.found.high)}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
