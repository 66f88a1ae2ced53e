"""The command line: `lvlm-guard`."""

from __future__ import annotations

import sys
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console
from rich.markup import escape

from lvlm_guard import __version__
from lvlm_guard.cli import answering, benchmarking, demonstration, fitting, listing, planning, stacks, testbed
from lvlm_guard.errors import GuardError

app = typer.Typer(
    name="lvlm-guard",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("strategies")(listing.strategies)
app.command("generate")(answering.generate)
app.command("demo")(demonstration.demo)
app.command("fit")(fitting.fit)
app.command("plan")(planning.plan)
app.add_typer(benchmarking.app, name="bench")
app.add_typer(stacks.app, name="stack")
app.add_typer(testbed.app, name="testbed")

USAGE_ERROR = 2


def print_version(show: bool) -> None:
    """Print the versions that decide what an answer is, and stop, where `--version` is set."""
    if show:
        typer.echo(f"lvlm-guard {__version__} (torch {torch.__version__}, transformers {transformers.__version__})")
        raise typer.Exit


@app.callback()
def configure(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Mitigate hallucinations of vision-language models at inference time."""


def main() -> None:
    """Run the command line; an error that the library raises on purpose becomes a message and exit code 2."""
    try:
        app()
    except GuardError as error:
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(USAGE_ERROR)
