"""The command line: `lvlm-guard`.

Its modules import what is slow inside the commands, so that help and completion come at once.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from lvlm_guard import __version__
from lvlm_guard.cli import (
    answering,
    architectures,
    benchmarking,
    bulk,
    demonstration,
    describing,
    diagnosing,
    engines,
    exporting,
    fitting,
    planning,
    prospecting,
    remedies,
    serving,
    stacks,
    testbed,
    tuning,
    verifying,
)
from lvlm_guard.cli.program import Group, Program, readable_endings

app = Program(
    name="lvlm-guard",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("strategies")(describing.strategies)
app.command("generate")(answering.generate)
app.command("generate-batch")(bulk.generate_batch)
app.command("demo")(demonstration.demo)
app.command("fit")(fitting.fit)
app.command("plan")(planning.plan)
app.command("models")(architectures.models)
app.command("engines")(engines.engines)
app.command("export")(exporting.export)
app.command("doctor")(prospecting.doctor)
app.command("verify")(verifying.verify)
app.command("tune")(tuning.tune)
app.command("serve")(serving.serve)
app.add_typer(benchmarking.app, name="bench")
app.add_typer(diagnosing.app, name="diagnose")
app.add_typer(remedies.app, name="remedies")
app.add_typer(stacks.app, name="stack")
app.add_typer(testbed.app, name="testbed")

DECISIVE = ("torch", "transformers", "triton")
"""The distributions whose versions decide what an answer is."""


def print_version(show: bool) -> None:
    """Print the versions that decide what an answer is, and stop, where `--version` is set."""
    if show:
        versions = ", ".join(f"{name} {_version_of(name)}" for name in DECISIVE)
        typer.echo(f"lvlm-guard {__version__} ({versions})")
        raise typer.Exit


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"


@app.callback()
def configure(
    _: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Mitigate hallucinations of vision-language models at inference time."""


def main() -> None:
    """Run the command line; an error that the library raises on purpose becomes a message and exit code 2."""
    with readable_endings():
        app()
