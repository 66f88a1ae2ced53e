"""`lvlm-guard doctor`: what is expected to work on a model, before its weights are loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lvlm_guard import loading
from lvlm_guard.cli.tables import show_table

if TYPE_CHECKING:
    from lvlm_guard.verification.prospects import Prospects


def doctor(
    model: Annotated[
        str, typer.Argument(metavar="DIR_OR_ID", help="A local folder, a hub id, or 'testbed' for the bundled model.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Say from the config files of a model what is expected to work on it; no weights are loaded."""
    loading.quieten()
    from lvlm_guard.verification.prospects import examine  # noqa: PLC0415 - slow to import

    prospects = examine(model)
    if as_json:
        typer.echo(json.dumps(prospects.to_dict(), indent=1))
        return
    _show(prospects, Console(highlight=False))


def _show(prospects: Prospects, console: Console) -> None:
    title = f"{prospects.architecture} ({prospects.type})" if prospects.architecture else prospects.type
    parts = [
        (part.name, part.says or "none", part.needed_for, "" if part.is_there else part.remedy)
        for part in prospects.parts
    ]
    running = ("stands there", "needed for", "do")
    show_table(console, ("part", "stands there", "needed for", "do"), parts, title=title, running=running)
    if prospects.unbuilt:
        console.print(prospects.unbuilt, soft_wrap=True, markup=False)
    obstacles = [(obstacle.name, obstacle.means, obstacle.remedy) for obstacle in prospects.obstacles]
    if obstacles:
        show_table(console, ("in the config", "means", "do"), obstacles, title="To know", running=("means", "do"))
    _show_cells(prospects, console)
    console.print(f"\nWith the weights: lvlm-guard verify --model {prospects.model}", soft_wrap=True, markup=False)


def _show_cells(prospects: Prospects, console: Console) -> None:
    if not prospects.cells:
        nearest = f" Similar names: {', '.join(prospects.nearest)}." if prospects.nearest else ""
        text = f"Nothing was measured on tiny models of the type {prospects.type}.{nearest}"
        console.print(text, soft_wrap=True, markup=False)
        return
    versions = ", ".join(f"{name} {version}" for name, version in prospects.versions.items())
    rows = [
        (mechanism, cell.status, "" if cell.status == "exact" else cell.explanation)
        for mechanism, cell in prospects.cells.items()
    ]
    title = f"Measured on a tiny random model of the type, with {versions}"
    show_table(console, ("mechanism", "status", "says"), rows, title=title, running=("says",))
