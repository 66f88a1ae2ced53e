"""`lvlm-guard tune`: search stacks under a cost limit, and judge the best on items that the search never saw."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_guard import loading
from lvlm_guard.cli.options import Allow, Batch, Calibration, Device, Dtype, Model, SuiteData, split_words

if TYPE_CHECKING:
    from lvlm_guard.tuning.results_page import SearchOutcome

NOTHING_BEATS = 1
"""The exit code where no stack beat the controls."""

Levels = Annotated[
    str | None, typer.Option(metavar="LEVELS", help="Levels that count, with commas between.", show_default="all")
]


def tune(
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR/stack.toml", help="The stack file; its folder keeps the search, which resumes there."
        ),
    ],
    suite: Annotated[
        str, typer.Option(metavar="SUITE", help="A suite, or one with arguments: scenes:count=120,split=iid.")
    ],
    budget: Annotated[
        str, typer.Option(metavar="FACTOR", help="Most forwards of an answer over plain generate's, such as 1.2x.")
    ],
    model: Model = loading.BUNDLED,
    calibration: Calibration = None,
    levels: Levels = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Strategies to search, or stack files with what is fixed, with commas between.",
            show_default="all that need no artefact",
        ),
    ] = None,
    largest: Annotated[int, typer.Option(min=1, help="Most strategies of a stack.")] = 2,
    trials: Annotated[int, typer.Option(min=1, help="Stacks to try; more of them go on where fewer ended.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    without: Annotated[
        list[str] | None, typer.Option(metavar="CONTROL", help="A control to switch off; repeat for several.")
    ] = None,
    singles: Annotated[
        bool, typer.Option("--singles/--no-singles", help="Judge each strategy alone too, at its published values.")
    ] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Most items of either part, in whole pictures.")] = None,
    data: SuiteData = None,
    parser: Annotated[
        str | None, typer.Option(metavar="PARSER", help="How answers are read.", show_default="the suite's first")
    ] = None,
    batch: Batch = 32,
    looks: Annotated[
        bool, typer.Option("--looks", help="Run what questions about one picture begin with once.")
    ] = False,
    allow: Allow = None,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Search stacks of strategies on calibration items, and judge the best on held-out ones beside every control.

    Writes the stack only where it beats them all; exit code 1 says that none did.
    """
    loading.quieten()
    from lvlm_guard.bench.running.systems import build_systems  # noqa: PLC0415 - slow to import
    from lvlm_guard.tuning import candidates, judging, objectives, records, sampling, splits, tune  # noqa: PLC0415 - as above
    from lvlm_guard.tuning.answering import TunedModel  # noqa: PLC0415 - as above

    limit_of_cost = judging.parse_budget(budget)
    tune.check_destination(out)
    records.check_folder(out.parent)
    sampling.load_optuna()
    build_systems({}, without or ())
    space = candidates.find_space(split_words(strategies), largest=largest, allow=allow or ())
    parts = splits.split_suite(suite, calibration, parser=parser, data=data, limit=limit)
    held_out = parts.held_out.choice.suite
    chosen = objectives.check_levels(split_words(levels), held_out.levels, held_out.name)
    tuning = tune.Tuning(
        parts.keep_levels(chosen),
        chosen,
        space,
        limit_of_cost,
        trials,
        seed,
        tuple(without or ()),
        singles,
        allow or (),
    )
    loaded, processor = loading.load(model, device, dtype)
    subject = TunedModel(loaded, processor, model, batch, looks, data, seed)
    outcome = tune.tune(tuning, subject, out, track=_track, command=_command())
    _report(outcome, out)


def _track(numbers: Iterable[int]) -> Iterable[int]:
    """Show a bar with the time left, where the output is a terminal."""
    from tqdm import tqdm  # noqa: PLC0415 - only when something is searched

    return tqdm(numbers, desc="tune", unit="trial", disable=None)


def _command() -> str:
    return shlex.join(["lvlm-guard", *sys.argv[1:]])


def _report(outcome: SearchOutcome, out: Path) -> None:
    """Say what came of it; leave with a code of its own where nothing beat the controls."""
    from lvlm_guard.tuning.results_page import NOTHING_BEATS as SENTENCE  # noqa: PLC0415 - slow to import
    from lvlm_guard.tuning.results_page import describe_stack, list_standing  # noqa: PLC0415 - as above
    from lvlm_guard.tuning.tune import PAGE  # noqa: PLC0415 - as above

    page = out.parent / PAGE
    if outcome.recommended is None:
        typer.echo(f"{SENTENCE} No stack file was written. The whole search: {page}")
        raise typer.Exit(NOTHING_BEATS)
    typer.echo(f"{out}: {describe_stack(outcome.recommended)}. The whole search: {page}")
    for line in list_standing(outcome):
        typer.echo(line)
