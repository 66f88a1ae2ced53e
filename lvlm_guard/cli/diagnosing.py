"""`lvlm-guard diagnose`: what is wrong with a model or an answer, and the profile of a sound model to compare one with."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_guard import loading
from lvlm_guard.cli import diagnosing_answers
from lvlm_guard.cli.options import Device, Dtype, Model
from lvlm_guard.cli.program import Program
from lvlm_guard.errors import InputError
from lvlm_guard.files import exists

if TYPE_CHECKING:
    from lvlm_guard.diagnosis import KnownItem

PROFILE_ITEMS = 624
ITEMS = 72
"""Known items of a profile, and of a diagnosis."""
SCENES = {"profile": "scenes:split=calibration,count=640", "model": "scenes:split=calibration,count=100,seed=1000"}
"""What the suite `scenes` alone stands for; the items of the two differ."""

Suite = Annotated[
    str,
    typer.Option(metavar="SUITE", help="Known items: a suite, or one with arguments, as in scenes:count=200,seed=5."),
]
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder with the suite's files; nothing is downloaded.")]

app = Program(help="Find what is wrong with a model, or with an answer.", no_args_is_help=True)
app.command("answer")(diagnosing_answers.answer)


@app.command("profile")
def profile(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The safetensors file to write.")],
    suite: Suite = "scenes",
    items: Annotated[int, typer.Option(min=1, help="Known items; 600 at least.")] = PROFILE_ITEMS,
    data: Data = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Measure what each component of a sound model does on known items, and write it to FILE."""
    loading.quieten()
    from tqdm import tqdm  # noqa: PLC0415 - only when something is measured

    from lvlm_guard.diagnosis import measure_profile  # noqa: PLC0415 - slow to import
    from lvlm_guard.testbed.files import check_destination  # noqa: PLC0415 - as above

    check_destination(out, "profile.safetensors")
    if exists(out) and not force:
        raise InputError(f"{out} exists. Name another file, or replace it with --force.")
    known_items = _load_items(suite, SCENES["profile"], items, data)
    loaded, processor = loading.load(model, device, dtype)
    track = functools.partial(tqdm, desc="profile", unit="battery")
    measured = measure_profile(loaded, processor, known_items, model_id=model, split=suite, track=track)
    measured.save(out)
    facts = measured.facts
    typer.echo(f"{out}: profile of {model}, {facts.items} items of {suite} in {facts.batteries} batteries.")


@app.command("model")
def diagnose(
    model: Model,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for diagnosis.html, diagnosis.json and components.csv.")
    ],
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Profile of the sound model, by lvlm-guard diagnose profile.")
    ] = None,
    suite: Suite = "scenes",
    items: Annotated[int, typer.Option(min=1, help="Known items; with a profile at least 24.")] = ITEMS,
    data: Data = None,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Say what is wrong with a model, judged by known items and by the profile of the sound one it was made from."""
    loading.quieten()
    from tqdm import tqdm  # noqa: PLC0415 - only when something is measured

    from lvlm_guard.diagnosis import Profile, diagnose_model  # noqa: PLC0415 - slow to import
    from lvlm_guard.diagnosis.model.diagnosing import estimate_cost  # noqa: PLC0415 - as above
    from lvlm_guard.diagnosis.model.words import describe  # noqa: PLC0415 - as above
    from lvlm_guard.diagnosis.report.writing import write_model_report  # noqa: PLC0415 - as above
    from lvlm_guard.testbed.files import check_folder  # noqa: PLC0415 - as above

    check_folder(out, "--out")
    known_items = _load_items(suite, SCENES["model"], items, data)
    loaded, processor = loading.load(model, device, dtype)
    sound = None if profile is None else Profile.load(profile, loaded)
    typer.echo(f"Cost: {estimate_cost(loaded, known_items, sound)}.", err=True)
    track = functools.partial(tqdm, desc="diagnose")
    diagnosis = diagnose_model(loaded, processor, known_items, profile=sound, model_id=model, split=suite, track=track)
    page = write_model_report(diagnosis, out)
    typer.echo(describe(diagnosis))
    typer.echo(f"{page}")


def _load_items(suite: str, scenes: str, count: int, data: Path | None) -> list[KnownItem]:
    """Return known items of a suite that is named as `bench run` names it."""
    from lvlm_guard.bench.running.choosing import choose_suites  # noqa: PLC0415 - slow to import
    from lvlm_guard.diagnosis import load_known_items  # noqa: PLC0415 - as above

    chosen = choose_suites([scenes if suite == "scenes" else suite], None)
    return load_known_items(next(iter(chosen.values())).suite, count, data)
