"""`lvlm-guard stack validate`: check a stack file without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack

app = typer.Typer(help="Work with stack files.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Work with stack files."""


@app.command("validate")
def validate(file: Annotated[Path, typer.Argument(help="A .toml, .yaml or .yml file.")]) -> None:
    """Check FILE: names, parameters, ranges; print the stack it describes."""
    stack = Stack.read(file)
    StrategyCalls(stack.strategies)
    typer.echo(f"{file}: {len(stack)} strategies, valid")
    for strategy in stack:
        typer.echo(f"  {strategy}")
