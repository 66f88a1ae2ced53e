"""`lvlm-guard models`: what works on which architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def models(
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--recheck",
            metavar="TYPE",
            help="Probe a model type now, on a tiny random model. May be repeated; all: every type.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the table, with what was probed now, to a JSON file."),
    ] = None,
) -> None:
    """Print which mechanisms are exact on which model types, measured on tiny random models."""
    from lvlm_guard.cli import architecture_tables  # noqa: PLC0415 - slow to import
    from lvlm_guard.testing.zoo.table import load_table, save_table  # noqa: PLC0415 - as above

    table = load_table()
    selected = table
    if types:
        selected = architecture_tables.probe(types, Console(stderr=True))
        table = table | selected
    if out is not None:
        save_table(table, out)
    if as_json:
        typer.echo(json.dumps({name: entry.to_dict() for name, entry in selected.items()}, indent=1))
    else:
        architecture_tables.print_models(selected, Console(highlight=False))
