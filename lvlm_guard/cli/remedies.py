"""`lvlm-guard remedies`: measure which strategies turn wrong answers round, and try the best of them on a question."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_guard import loading
from lvlm_guard.cli.options import Allow, Batch, Calibration, Device, Dtype, Limit, Model, SuiteData, split_words
from lvlm_guard.cli.program import Program
from lvlm_guard.cli.questions import check_picture, check_question
from lvlm_guard.errors import InputError
from lvlm_guard.files import check_name, is_folder

if TYPE_CHECKING:
    from lvlm_guard.tuning.remedy_trial import Attempt, RemedyTrial

NOTHING_HELPED = 1
"""The exit code where no remedy helped."""

MOST_NEIGHBOURS = 3
"""Neighbours of a question that are printed."""

app = Program(help="Measure and try remedies for wrong answers.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure which strategies turn wrong answers round, and try the best of them on a question."""


@app.command("measure")
def measure(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The JSON file to write.")],
    suite: Annotated[str, typer.Option(metavar="SUITE", help="A suite, or one with arguments.")] = "scenes",
    calibration: Calibration = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Strategies or stack files to measure, with commas between.",
            show_default="all that need no artefact",
        ),
    ] = None,
    model: Model = loading.BUNDLED,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep answers there; the same command goes on.", show_default="FILE.answers"),
    ] = None,
    limit: Limit = None,
    data: SuiteData = None,
    batch: Batch = 32,
    allow: Allow = None,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Let each strategy answer calibration items, and write what it cured and broke, by level and margin."""
    loading.quieten()
    from lvlm_guard.host.stack import Stack  # noqa: PLC0415 - slow to import
    from lvlm_guard.tuning import candidates, remedies, splits  # noqa: PLC0415 - as above
    from lvlm_guard.tuning.answering import TunedModel  # noqa: PLC0415 - as above

    check_name(out)
    if not is_folder(out.absolute().parent):
        raise InputError(f"--out: there is no folder {str(out.parent)!r}. Make it first.")
    space = candidates.find_space(split_words(strategies), allow=allow or ())
    stacks = {
        candidate.name: Stack.of({"name": candidate.name, "params": dict(candidate.fixed)}, allow=allow or ())
        for candidate in space.candidates
    }
    items = splits.split_suite(suite, calibration, data=data, limit=limit).calibration
    loaded, processor = loading.load(model, device, dtype)
    subject = TunedModel(loaded, processor, model, batch, data=data)
    table = remedies.measure(subject, items, stacks, folder or out.with_name(f"{out.name}.answers"), track=_track)
    table.save(out)
    wrong = sum(not row.right for row in table.rows)
    typer.echo(
        f"{out}: {len(table.remedies)} remedies on {len(table.rows)} items, of which {wrong} were answered wrongly."
    )
    for name, reason in table.refusals.items():
        typer.echo(f"{name} refused: {reason}", err=True)


def _track(names: Iterable[str]) -> Iterable[str]:
    """Show a bar with the time left, where the output is a terminal."""
    from tqdm import tqdm  # noqa: PLC0415 - only when something is measured

    return tqdm(names, desc="remedies", unit="remedy", disable=None)


@app.command("try")
def try_out(
    table: Annotated[Path, typer.Option(metavar="FILE", help="What 'remedies measure' wrote for this model.")],
    image: Annotated[Path, typer.Option(metavar="FILE", help="The picture.")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question.")],
    level: Annotated[str, typer.Option(metavar="LEVEL", help="object, attribute or relation.")],
    count: Annotated[int, typer.Option(min=1, help="Most remedies to try.")] = 3,
    model: Model = loading.BUNDLED,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Try the remedies that cured most questions of a level and of about the same margin; exit code 1 if none helped."""
    loading.quieten()
    check_question(prompt)
    picture = check_picture(image)
    from lvlm_guard.tuning import remedies, remedy_trial  # noqa: PLC0415 - as above
    from lvlm_guard.tuning.answering import TunedModel  # noqa: PLC0415 - as above

    measured = remedies.RemedyTable.read(table)
    measured.propose(level, None, count)  # refuses a level before the model is loaded
    loaded, processor = loading.load(model, device, dtype)
    subject = TunedModel(loaded, processor, model)
    trial = remedy_trial.try_remedies(measured, subject, picture, prompt, level, count=count)
    _show(trial)
    if trial.best is None:
        typer.echo(remedy_trial.NOTHING_HELPED)
        raise typer.Exit(NOTHING_HELPED)
    typer.echo(f"First that helps: {trial.best.proposal.name}.")


def _show(trial: RemedyTrial) -> None:
    margin = "no margin between yes and no" if trial.margin is None else f"margin {trial.margin:.2f}"
    typer.echo(f"plain: {trial.plain.strip()}  ({margin})")
    for attempt in trial.attempts:
        typer.echo(_describe(attempt))
        for row in attempt.neighbours[:MOST_NEIGHBOURS]:
            after, right = row.answers[attempt.proposal.name]
            typer.echo(f"    {row.prompt}  {_mark(row.plain, right=row.right)} -> {_mark(after, right=right)}")


def _describe(attempt: Attempt) -> str:
    cures = attempt.proposal.cures
    if attempt.refusal:
        return f"{attempt.proposal.name}: refused: {attempt.refusal}"
    answer = attempt.after.strip() if attempt.changed else "the same answer"
    lead = "" if attempt.proposal.beats_control else "; a push towards one answer cured as much"
    return (
        f"{attempt.proposal.name}: {answer}  (cured {cures.cured} of {cures.wrong} such wrong answers and broke {cures.broken} of "
        f"{cures.right} right ones{lead}; of {len(attempt.neighbours)} neighbours it cured {attempt.cured}, broke {attempt.broken})"
    )


def _mark(text: str, *, right: bool) -> str:
    return f"{text.strip()!r} ({'right' if right else 'wrong'})"
