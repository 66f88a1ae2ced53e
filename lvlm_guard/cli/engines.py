"""`lvlm-guard engines`: which strategy runs in which engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from lvlm_guard.engines.support import EngineRun, SupportTable


def engines(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False) -> None:
    """Print which strategy runs in which engine, as measured on the bundled model."""
    from lvlm_guard.engines.support import load_support  # noqa: PLC0415 - slow to import

    table = load_support()
    if as_json:
        typer.echo(json.dumps(table.to_dict(), indent=1))
        return
    _print_table(table, Console(highlight=False))


def _print_table(table: SupportTable, console: Console) -> None:
    from lvlm_guard.cli.tables import show_table  # noqa: PLC0415 - slow to import

    show_table(console, ("strategy", "engine", "answers", "effect", "why"), list(_list_rows(table)), running=("why",))
    console.print(", ".join(f"{name}: {value}" for name, value in table.setup.items()), soft_wrap=True)


def _list_rows(table: SupportTable) -> Iterator[tuple[str, str, str, str, str]]:
    names = sorted({name for runs in table.engines.values() for name in runs})
    for name in names:
        for engine, runs in table.engines.items():
            if name in runs:
                effect = f"{runs[name].effect:.2f}" if runs[name].answers else ""
                yield name, engine, describe_run(runs[name]), effect, runs[name].reason


def describe_run(run: EngineRun) -> str:
    """Return in a few words how a strategy did in an engine."""
    if run.status in ("equal", "differs"):
        return f"{run.equal} of {run.answers} equal"
    return run.status
