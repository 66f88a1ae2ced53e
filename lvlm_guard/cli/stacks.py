"""`lvlm-guard stack validate`: check a stack file without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_guard.cli.options import Allow
from lvlm_guard.cli.program import Program
from lvlm_guard.cli.tables import count_of

app = Program(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Check stack files."""


@app.command("validate")
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .toml, .yaml or .yml file.")], allow: Allow = None
) -> None:
    """Check names, parameters and ranges of the stack in FILE, and print it."""
    from lvlm_guard.host.plugins import StrategyCalls  # noqa: PLC0415 - slow to import
    from lvlm_guard.host.stack import Stack  # noqa: PLC0415 - as above

    stack = Stack.read(file, allow=allow or ())
    StrategyCalls(stack.strategies)
    typer.echo(f"{file}: valid, {count_of(len(stack), 'strategy', 'strategies')}")
    for strategy in stack:
        typer.echo(f"  {strategy}")
