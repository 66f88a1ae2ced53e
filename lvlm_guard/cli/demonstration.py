"""`lvlm-guard demo`: plain beside guarded on held-out scenes of the bundled testbed."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from lvlm_guard.cli import loading
from lvlm_guard.guard import DEFAULT_STACK, Guard


def demo(
    model: Annotated[
        str, typer.Option(help="'testbed', or the folder of a model trained on its scenes.")
    ] = loading.BUNDLED,
    stack: Annotated[str, typer.Option(help="A strategy's name or a .toml, .yaml file.")] = DEFAULT_STACK,
    scenes: Annotated[int, typer.Option(min=2, max=2000, help="Scenes of each split.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Answer and caption held-out scenes plain and guarded; print scores with intervals, and the cost."""
    from lvlm_guard.testbed import demo as testbed_demo  # noqa: PLC0415 - only when it is asked for

    loaded, processor = loading.load(model)
    guard = Guard(loaded, processor, stack)
    result = testbed_demo.run(loaded, processor, guard, scenes)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        testbed_demo.render(result, Console())
        typer.echo("More scenes narrow the intervals: --scenes 300.")
