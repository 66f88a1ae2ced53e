"""`lvlm-guard bench`: run benchmarks over stacks and controls, score them, compare runs."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lvlm_guard import loading
from lvlm_guard.cli import auditing, costing
from lvlm_guard.cli.options import ONE_STACK, Allow, Batch, Device, Dtype, Limit, Model, SuiteData
from lvlm_guard.cli.program import Program
from lvlm_guard.cli.tables import count_of
from lvlm_guard.errors import GuardWarning

if TYPE_CHECKING:
    from lvlm_guard.bench.catalogue import SuiteOffer
    from lvlm_guard.bench.running.manifest import Gathered, RunPlan
    from lvlm_guard.bench.running.store import Record

app = Program(help="Run benchmarks, score and compare them.", no_args_is_help=True)

Data = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder with the suites' files.", show_default="where the run found them"),
]
Parser = Annotated[
    str | None, typer.Option(metavar="PARSER", help="How answers are read.", show_default="the run's own")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]


@app.callback()
def group() -> None:
    """Run benchmarks over stacks and the controls that a gain must beat, score and compare them."""


app.command("cost")(costing.cost)
app.command("audit")(auditing.audit)


@app.command("list")
def list_suites(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead.")] = False,
) -> None:
    """List the suites: what they test, which files they need, under which licence."""
    loading.quieten()
    from lvlm_guard.bench.catalogue import catalogue  # noqa: PLC0415 - slow to import
    from lvlm_guard.cli import bench_tables  # noqa: PLC0415 - as above

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuardWarning)  # printed below, or on stderr
        offers, broken = catalogue().load_all()
    described = [_describe(offer) for offer in offers]
    typer.echo(json.dumps(described, indent=2, default=str) if as_json else bench_tables.format_suites(described))
    for failure in broken:
        typer.echo(f"skipped {failure.entry_point} of {failure.distribution}: {failure.reason}", err=True)


def _describe(offer: SuiteOffer) -> dict[str, Any]:
    suite = offer.suite
    return {
        "name": offer.name,
        "title": suite.title,
        "levels": list(suite.levels),
        "parsers": list(suite.parsers),
        "required": [dataclasses.asdict(requirement) for requirement in suite.required],
        "arguments": {field.name: _default(field) for field in dataclasses.fields(suite) if field.init},
        "licence": suite.licence,
        "homepage": suite.homepage,
        "distribution": offer.distribution,
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    """Return the default of an argument, None where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


@app.command("run")
def run(
    suite: Annotated[
        list[str],
        typer.Argument(metavar="SUITE...", help="A suite, or one with arguments: scenes:count=100,split=iid."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run; the same command resumes there.")],
    stack: Annotated[
        list[str] | None,
        typer.Option(metavar="STACK", help=f"{ONE_STACK}; repeat for several stacks."),
    ] = None,
    allow: Allow = None,
    model: Model = loading.BUNDLED,
    limit: Limit = None,
    data: SuiteData = None,
    parser: Annotated[
        str | None, typer.Option(metavar="PARSER", help="How answers are read.", show_default="each suite's first")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="CONTROL", help="A control to switch off; repeat for several.")
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Let the stacks sample instead of answering greedily.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is sampled.")] = 0,
    batch: Batch = 16,
    missing_pictures: Annotated[
        str,
        typer.Option(
            metavar="refuse|skip", help="Refuse where pictures are missing or broken, or skip and count their items."
        ),
    ] = "refuse",
    looks: Annotated[
        bool, typer.Option("--looks", help="Run what questions about one picture begin with once.")
    ] = False,
    device: Device = None,
    dtype: Dtype = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the run, each with the model.")] = 1,
) -> None:
    """Answer suites with stacks and controls, keep every raw answer, then score.

    The same command resumes a run that was stopped.
    """
    loading.quieten()
    from lvlm_guard.bench.running import choosing, runner, store, systems  # noqa: PLC0415 - slow to import
    from lvlm_guard.bench.running.gathering import gather  # noqa: PLC0415 - as above
    from lvlm_guard.bench.running.manifest import RunPlan  # noqa: PLC0415 - as above

    off = tuple(without or ())
    systems_compared = systems.build_systems(systems.read_stacks(stack or (), allow or ()), off, sampled=sample)
    plan = RunPlan(
        choosing.choose_suites(suite, parser), systems_compared, off, data, limit, batch, seed, missing_pictures, looks
    )
    store.check_folder(out)
    gathered = gather(plan)
    if workers > 1:
        record = _run_shared(plan, gathered, out, workers, (model, device, dtype))
    else:
        loaded, processor = loading.load(model, device, dtype)
        record = runner.run(plan, loaded, processor, out, model_id=model, gathered=gathered)
    _report(record, None, data)


def _run_shared(
    plan: RunPlan, gathered: Gathered, out: Path, workers: int, model: tuple[str, str | None, str]
) -> Record:
    """Do a run with several processes; say so where some died."""
    from lvlm_guard.bench.running.shared_run import ModelSource, run_shared  # noqa: PLC0415 - slow to import

    record, replaced = run_shared(plan, ModelSource(*model), out, workers, gathered)
    if replaced:
        typer.echo(f"{count_of(replaced, 'worker')} died and {'was' if replaced == 1 else 'were'} replaced", err=True)
    return record


@app.command("report")
def report(folder: Folder, parser: Parser = None, data: Data = None) -> None:
    """Score the raw answers in DIR, print the tables, and write figures and a page there; no model is needed."""
    loading.quieten()
    from lvlm_guard.bench.running import store  # noqa: PLC0415 - slow to import

    _report(store.read(folder), parser, data)


@app.command("rescore", hidden=True)
def rescore(folder: Folder, parser: Parser = None, data: Data = None) -> None:
    """Do what `bench report` does; this is its former name."""
    typer.echo("'lvlm-guard bench rescore' is deprecated; use 'lvlm-guard bench report'.", err=True)
    report(folder, parser, data)


def _report(record: Record, parser: str | None, data: Path | None) -> None:
    """Print figures and write them as files; those of another parser than the run's have names of their own."""
    from lvlm_guard.bench.reporting import edited, export, judging, page, results  # noqa: PLC0415 - slow to import
    from lvlm_guard.cli import bench_tables  # noqa: PLC0415 - as above

    scored = dataclasses.replace(results.score(record, parser, data), edits=edited.find_edits(record, data))
    original = {name: description["parser"] for name, description in record.manifest["suites"].items()}
    name = "results" if dict(scored.parsers) == original else f"results-{parser}"
    judged = judging.judge_run(record, scored, data)
    written = [*export.write(scored, record.folder, name, judged)]
    bench_tables.show(scored, Console(), judged)
    page_path = record.folder / f"{name.replace('results', 'report')}.html"
    page.write(record, scored, page_path, data, judged)
    written.append(page_path)
    typer.echo(f"Raw answers and figures: {', '.join(str(path) for path in written)}")


@app.command("compare")
def compare(
    before: Folder,
    after: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of another run of the same items.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare the runs in two folders stack by stack, answer by answer."""
    loading.quieten()
    from lvlm_guard.bench.reporting import comparing, results  # noqa: PLC0415 - slow to import
    from lvlm_guard.bench.running import store  # noqa: PLC0415 - slow to import
    from lvlm_guard.cli import bench_tables  # noqa: PLC0415 - as above

    comparison = comparing.compare(store.read(before), store.read(after))
    if as_json:
        typer.echo(json.dumps(results.to_plain(comparison), indent=2))
        return
    bench_tables.show_comparison(comparison, Console())
