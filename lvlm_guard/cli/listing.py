"""`lvlm-guard strategies`: the installed strategies as a table, and one strategy's card."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lvlm_guard.host.plugins import catalogue

ARXIV_NUMBER = re.compile(r"\b\d{4}\.\d{4,5}\b")
Value = TypeVar("Value")
SIGNS = {"min": "≥", "above": ">", "max": "≤", "below": "<"}


def complete_name(incomplete: str) -> list[str]:
    """Return the names of the strategies that start with `incomplete`, for completion in the shell."""
    return [offer.name for offer in catalogue() if offer.name.startswith(incomplete)]


def strategies(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="The strategy to describe.", autocompletion=complete_name),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """List the installed strategies, or describe the one called NAME."""
    if name is None:
        _show([offer.describe() for offer in catalogue()], print_list, as_json=as_json)
        return
    catalogue().find(name)
    _show(catalogue().offers[name].describe(), print_card, as_json=as_json)


def _show(value: Value, print_value: Callable[[Value, Console], None], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=2))
    else:
        print_value(value, Console(highlight=False))


def print_list(strategies: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print one table for each distribution, then the plugins that could not be loaded."""
    by_origin = sorted(strategies, key=_format_origin)
    for origin, rows in itertools.groupby(by_origin, _format_origin):
        console.print(_build_table(origin, rows))
    for broken in catalogue().broken:
        console.print(Text(f"Not loaded: {broken.entry_point} of {broken.distribution}: {broken.reason}", "yellow"))
    console.print("Describe one with its parameters: lvlm-guard strategies NAME")


def _build_table(origin: str, strategies: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title=f"Strategies of {origin}")
    for heading in ("name", "family", "effect"):
        table.add_column(heading, overflow="fold")
    for strategy in strategies:
        table.add_row(*(Text(strategy[column]) for column in ("name", "family", "summary")))
    return table


def print_card(strategy: Mapping[str, Any], console: Console) -> None:
    """Print all that a strategy states about itself: effect and formula, origin, cost, hooks, parameters."""
    console.print(Text(strategy["name"], "bold"))
    for paragraph in (strategy["summary"], *_split_paragraphs(strategy["details"])):
        console.print()
        console.print(Text(paragraph))
    console.print()
    console.print(_build_grid(_collect_facts(strategy)))
    console.print()
    console.print(Text("Parameters" if strategy["parameters"] else "No parameters", "bold"))
    parameters = {parameter["name"]: format_parameter(parameter, strategy) for parameter in strategy["parameters"]}
    console.print(Padding(_build_grid(parameters), (0, 0, 0, 2)))


def _collect_facts(strategy: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts that the strategy states, by heading; what it does not state is left out."""
    facts = {
        "family": strategy["family"],
        "paper": "\n".join([strategy["paper"] or "", *find_links(strategy["paper"])]),
        "cost": strategy["cost"],
        "neutral": " and ".join(f"{name} = {value!r}" for name, value in strategy["neutral"].items()),
        "hooks": ", ".join(strategy["hooks"]),
        "from": _format_origin(strategy),
    }
    return {heading: fact for heading, fact in facts.items() if fact}


def _build_grid(rows: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for heading, text in rows.items():
        grid.add_row(Text(heading), Text(text))
    return grid


def format_parameter(parameter: Mapping[str, Any], strategy: Mapping[str, Any]) -> str:
    """Write type, range, default and neutral value of a parameter in one line, its description below."""
    name = parameter["name"]
    facts = [
        " ".join(filter(None, (parameter["type"], format_range(parameter)))),
        "required" if parameter.get("required") else f"default {parameter['default']!r}",
        f"neutral {strategy['neutral'][name]!r}" if name in strategy["neutral"] else "",
    ]
    return "\n".join(filter(None, (", ".join(filter(None, facts)), parameter.get("description"))))


def format_range(parameter: Mapping[str, Any]) -> str:
    """Write the limits of a parameter, or the values it may take; empty where there are none."""
    if "enum" in parameter:
        return f"({' | '.join(map(str, parameter['enum']))})"
    return " and ".join(f"{sign} {parameter[limit]:g}" for limit, sign in SIGNS.items() if limit in parameter)


def find_links(paper: str | None) -> list[str]:
    """Return the addresses of the papers that are cited by their arXiv numbers."""
    numbers = ARXIV_NUMBER.findall(paper or "") if (paper or "").startswith("arXiv ") else []
    return [f"https://arxiv.org/abs/{number}" for number in numbers]


def _format_origin(strategy: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (strategy["distribution"], strategy["version"])))


def _split_paragraphs(text: str) -> list[str]:
    """Split at blank lines, and join the lines of running text, so that it wraps at the terminal's width."""
    paragraphs = text.split("\n\n") if text else []
    return [
        paragraph if re.search(r"^[\s*>-]", paragraph, re.MULTILINE) else " ".join(paragraph.split("\n"))
        for paragraph in paragraphs
    ]
