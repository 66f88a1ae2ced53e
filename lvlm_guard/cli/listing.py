"""The installed strategies as a table, and one strategy's card."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lvlm_guard.cli.tables import show_table
from lvlm_guard.host import plugins
from lvlm_guard.host.presets import PRESETS

ARXIV_NUMBER = re.compile(r"\b\d{4}\.\d{4,5}\b")
SIGNS = {"min": "≥", "above": ">", "max": "≤", "below": "<"}


def print_list(strategies: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print one table for each distribution, then the plugins that could not be loaded and the presets."""
    by_origin = sorted(strategies, key=_format_origin)
    for origin, rows in itertools.groupby(by_origin, _format_origin):
        cells = [(row["name"], row["family"], row["summary"]) for row in rows]
        show_table(console, ("name", "family", "effect"), cells, title=f"Strategies of {origin}", running=("effect",))
    for broken in plugins.catalogue().broken:
        console.print(Text(f"Not loaded: {broken.entry_point} of {broken.distribution}: {broken.reason}", "yellow"))
    stacks = [(name, " + ".join(preset.strategies), preset.summary) for name, preset in PRESETS.items()]
    show_table(console, ("name", "strategies", "runs"), stacks, title="Stacks at published settings", running=("runs",))
    console.print("Describe one with its parameters: lvlm-guard strategies NAME")


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
