"""`lvlm-guard strategies`: what is installed, from which distribution, with which parameters."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lvlm_guard.host.plugins import catalogue


def strategies(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """List the strategies that the installed distributions offer."""
    described = [offer.describe() for offer in catalogue()]
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    console = Console()
    console.print(_table(described))
    for broken in catalogue().broken:
        console.print(f"[yellow]skipped[/] {broken.entry_point} of {broken.distribution}: {broken.reason}")


def _table(described: list[dict[str, Any]]) -> Table:
    table = Table("name", "family", "paper", "cost", "parameters (default)", "from", title="Strategies")
    for one in described:
        parameters = "\n".join(f"{parameter['name']} ({parameter['default']})" for parameter in one["parameters"])
        table.add_row(one["name"], one["family"], one["paper"], one["cost"], parameters, one["distribution"])
    return table
