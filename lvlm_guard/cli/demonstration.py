"""`lvlm-guard demo`: a bench run of drawn scenes, plain beside guarded, with its tables and its page."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lvlm_guard import loading
from lvlm_guard.cli.options import ONE_STACK
from lvlm_guard.errors import InputError

if TYPE_CHECKING:
    from lvlm_guard.bench.running.manifest import RunPlan
    from lvlm_guard.bench.running.store import Record
    from lvlm_guard.testbed.suite import Split

PAGE = Path("demo.html")
SPLITS: tuple[Split, ...] = ("counterfactual", "iid")
RESAMPLES = 1000
"""Bootstrap resamples of a difference: as many as of a score."""

NO_STRATEGY = "no-strategy"
"""The name of an empty stack in the run."""


def demo(
    model: Annotated[
        str, typer.Option(help="'testbed', or the folder of a model trained on its scenes.")
    ] = loading.BUNDLED,
    stack: Annotated[
        str | None,
        typer.Option(
            metavar="STACK", help=f"{ONE_STACK}; by default what did best on calibration scenes of 'testbed'."
        ),
    ] = None,
    scenes: Annotated[
        int, typer.Option(min=2, max=2000, help="Scenes of each split; a third of the first breaks each habit.")
    ] = 60,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep the run in; the same command resumes there. By default none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    page: Annotated[
        Path | None, typer.Option(help="The HTML page to write, by default demo.html, with --json none.")
    ] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Write no HTML page.")] = False,
) -> None:
    """Answer and caption held-out scenes plain and guarded; show scores with intervals, the cost, and examples."""
    loading.quieten()
    from lvlm_guard.bench.reporting import page as report_page  # noqa: PLC0415 - only when it is asked for
    from lvlm_guard.bench.reporting import results  # noqa: PLC0415 - as above
    from lvlm_guard.cli import demonstration_tables  # noqa: PLC0415 - as above

    destination = _destination(page, skip=no_page, as_json=as_json)
    if stack is None and model != loading.BUNDLED:
        raise InputError(
            "The demo's own stack was chosen and fitted on the bundled model. For another model give one, as in --stack vsv."
        )
    plan = build_plan(stack, scenes)
    with _folder(out) as folder:
        record = run(plan, model, folder)
        scored = results.score(record, resamples=RESAMPLES)
        if destination is not None:
            report_page.write(record, scored, destination)
    if as_json:
        typer.echo(json.dumps(demonstration_tables.to_plain(scored), indent=2))
        return
    demonstration_tables.show(scored, Console())
    typer.echo("More scenes narrow the intervals: --scenes 300.")
    if destination is not None:
        typer.echo(f"The same with pictures and captions: {destination}")


def build_plan(stack: str | None, scenes: int) -> RunPlan:
    """Build the plan of the demo's run.

    Args:
        stack: A strategy's name or a stack file; the demo's own stack where it is None.
        scenes: Scenes of each split.

    Raises:
        StackError: The stack cannot be built.
    """
    from lvlm_guard.host.stack import Stack  # noqa: PLC0415 - only when it is asked for
    from lvlm_guard.testbed import model, running  # noqa: PLC0415 - as above
    from lvlm_guard.testbed.suite import Scenes  # noqa: PLC0415 - as above

    guarded = Stack.of(model.DEMO_STACK if stack is None else stack)
    suites: dict[str, Scenes] = {split: Scenes(split=split, count=scenes) for split in SPLITS}
    return running.build_plan(suites, {"+".join(guarded.names) or NO_STRATEGY: guarded})


def run(plan: RunPlan, model: str, folder: Path) -> Record:
    """Answer the plan's scenes with a model, or the rest of them.

    Args:
        plan: What to do.
        model: "testbed" or a folder.
        folder: Where the run is kept.

    Raises:
        InputError: The model cannot be loaded or has no chat template, or the folder holds something else.
        Refused: The stack cannot answer.
    """
    from lvlm_guard.bench.running import runner  # noqa: PLC0415 - only when it is asked for
    from lvlm_guard.testbed.running import check_refusals  # noqa: PLC0415 - as above

    loaded, processor = loading.load(model)
    record = runner.run(plan, loaded, processor, folder, model_id=model)
    check_refusals(record)
    return record


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder of the run: the user's, or one that is gone afterwards."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="lvlm-guard-demo-") as folder:
        yield Path(folder)


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
