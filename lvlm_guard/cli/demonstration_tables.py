"""The figures of `lvlm-guard demo` as tables for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from lvlm_guard.bench.reporting.results import Results, Spent
from lvlm_guard.bench.reporting.results import to_plain as plain_values
from lvlm_guard.bench.running.systems import GREEDY
from lvlm_guard.bench.scoring.intervals import Interval, format_interval
from lvlm_guard.cli.tables import Cell, count_of, show_table
from lvlm_guard.testbed.figures import DEMO_FIGURES, Figure

LIMIT = "Figures of a small model on drawn scenes: they say nothing about other models."
PLAIN, GUARDED = "plain", "guarded"
_STYLES = {"better": "green", "worse": "red", "unclear": "dim"}


class DemoComparison(NamedTuple):
    """A figure of plain and of guarded generation on the same prompts; `difference` is guarded minus plain."""

    plain: Interval
    guarded: Interval
    difference: Interval
    n: int
    scenes: int


class DemoCost(NamedTuple):
    """What answers took. Forwards and rows per decode forward are counted against plain generation, which has 1."""

    ms_per_token: float
    tokens: int
    prefill: float
    decode: float
    rows: float


def compare(results: Results, split: str) -> dict[str, DemoComparison]:
    """Return the demo's figures of one split by name; a figure of which nothing is counted is left out."""
    compared = {}
    for name, figure in DEMO_FIGURES.items():
        scores = results.of(split, figure.measure.name)
        if (guarded := scores.get(guarded_system(results))) is not None and guarded.against_greedy is not None:
            difference = guarded.against_greedy.difference
            compared[name] = DemoComparison(
                scores[GREEDY].found, guarded.found, difference, guarded.n, guarded.clusters
            )
    return compared


def guarded_system(results: Results) -> str:
    """Return the name of the run's stack."""
    return next(name for name, system in results.manifest["systems"].items() if system["role"] == "stack")


def stack_title(results: Results) -> str:
    """Return the strategies of the run's stack, joined by "+"."""
    entries = results.manifest["systems"][guarded_system(results)]["stack"]
    return "+".join(entry["name"] for entry in entries) or "no strategy"


def costs(results: Results) -> dict[str, DemoCost]:
    """Return what plain and guarded generation took over all splits."""
    systems = {PLAIN: GREEDY, GUARDED: guarded_system(results)}
    return {title: _cost(_spent(results, system)) for title, system in systems.items()}


def _spent(results: Results, system: str) -> list[Spent]:
    return [outcome.spent for outcome in results.outcomes if outcome.system == system and outcome.spent is not None]


def _cost(spent: Sequence[Spent]) -> DemoCost:
    tokens = sum(part.tokens for part in spent)

    def mean(name: str) -> float:
        return sum(getattr(part, name) * part.tokens for part in spent) / max(tokens, 1)

    return DemoCost(mean("ms_per_token"), tokens, mean("prefill"), mean("decode"), mean("rows_per_forward"))


def scenes_per_split(results: Results) -> int:
    """Return how many scenes of each split the run is about."""
    return int(next(iter(results.manifest["suites"].values()))["arguments"]["count"])


def to_plain(results: Results) -> dict[str, Any]:
    """Return the figures as JSON values: `model`, `stack`, `scenes`, `splits` by figure, `cost`."""
    return {
        "model": results.manifest["model"]["class"],
        "stack": stack_title(results),
        "scenes": scenes_per_split(results),
        "splits": {
            split: {name: _plain_comparison(compared) for name, compared in compare(results, split).items()}
            for split in results.manifest["suites"]
        },
        "cost": {name: _plain_cost(cost) for name, cost in costs(results).items()},
    }


def _plain_comparison(compared: DemoComparison) -> dict[str, Any]:
    intervals = {PLAIN: compared.plain, GUARDED: compared.guarded, "difference": compared.difference}
    return {name: {**plain_values(interval), "n": compared.n} for name, interval in intervals.items()}


def _plain_cost(cost: DemoCost) -> dict[str, Any]:
    forwards = {"prefill": cost.prefill, "decode": cost.decode}
    return {
        "ms_per_token": cost.ms_per_token,
        "tokens": cost.tokens,
        "forwards_per_token": forwards,
        "rows_per_forward": cost.rows,
    }


def show(results: Results, console: Console) -> None:
    """Print one table per split, its rows by level, and one of the cost."""
    scenes, stack = count_of(scenes_per_split(results), "scene"), stack_title(results)
    for split in results.manifest["suites"]:
        _show_figures(f"{split}: {scenes}, {stack} against plain", compare(results, split), console)
    _show_costs(costs(results), console)
    console.print(LIMIT)


def _show_figures(title: str, compared: Mapping[str, DemoComparison], console: Console) -> None:
    levels = [DEMO_FIGURES[name].level for name in compared]
    show_table(
        console,
        ("measure", PLAIN, GUARDED, "difference [95 %]", "n"),
        [_cells(DEMO_FIGURES[name], comparison) for name, comparison in compared.items()],
        title=title,
        running=("measure",),
        last=[number for number, level in enumerate(levels) if levels[number + 1 : number + 2] != [level]],
    )


def _cells(figure: Figure, compared: DemoComparison) -> tuple[Cell, ...]:
    change, style = compared.difference, _STYLES[figure.verdict(compared.difference)]
    return (
        f"{figure.title} ({figure.aim})",
        f"{compared.plain.value:.3f}",
        f"{compared.guarded.value:.3f}",
        Text(format_interval(change, compared.scenes, signed=True), style),
        str(compared.n),
    )


def _show_costs(costs_by_title: Mapping[str, DemoCost], console: Console) -> None:
    headings = ("", "ms per token", "prefill forwards", "decode forwards", "rows per forward")
    rows = [
        (title, *(f"{value:.2f}" for value in (cost.ms_per_token, cost.prefill, cost.decode, cost.rows)))
        for title, cost in costs_by_title.items()
    ]
    show_table(console, headings, rows, title="cost, measured in this run")
