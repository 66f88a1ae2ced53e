"""`lvlm-guard demo`: plain beside guarded on held-out scenes of the bundled testbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lvlm_guard import loading
from lvlm_guard.errors import InputError
from lvlm_guard.guard import Guard

PAGE = Path("demo.html")


def demo(
    model: Annotated[
        str, typer.Option(help="'testbed', or the folder of a model trained on its scenes.")
    ] = loading.BUNDLED,
    stack: Annotated[
        str | None,
        typer.Option(help="A strategy's name or a .toml, .yaml file; by default what did best on calibration scenes."),
    ] = None,
    scenes: Annotated[
        int, typer.Option(min=2, max=2000, help="Scenes of each split; a third of the first breaks each habit.")
    ] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    page: Annotated[
        Path | None, typer.Option(help="The HTML page to write, by default demo.html, with --json none.")
    ] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Write no HTML page.")] = False,
) -> None:
    """Answer and caption held-out scenes plain and guarded; show scores with intervals, the cost, and examples."""
    loading.quieten()
    from lvlm_guard.testbed import demo as testbed_demo  # noqa: PLC0415 - only when it is asked for
    from lvlm_guard.testbed import page as testbed_page  # noqa: PLC0415 - as above

    destination = _destination(page, skip=no_page, as_json=as_json)
    loaded, processor = loading.load(model)
    if not getattr(processor, "chat_template", None):
        raise InputError(f"{model!r} has no chat template, so the demo cannot ask it anything.")
    guard = Guard(loaded, processor, testbed_demo.STACK if stack is None else stack)
    result = testbed_demo.run(loaded, processor, guard, scenes)
    if destination is not None:
        testbed_page.write(result, destination)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
        return
    testbed_demo.render(result, Console())
    typer.echo("More scenes narrow the intervals: --scenes 300.")
    if destination is not None:
        typer.echo(f"The same with pictures and captions: {destination}")


def _destination(page: Path | None, *, skip: bool, as_json: bool) -> Path | None:
    """Where the page goes, checked before any work; None where no page is wanted."""
    from lvlm_guard.testbed.files import check_destination  # noqa: PLC0415 - only when it is asked for

    if skip and page is not None:
        raise InputError("--page and --no-page exclude each other. Leave one out.")
    if skip or (as_json and page is None):
        return None
    destination = page or PAGE
    check_destination(destination, PAGE.name)
    return destination
