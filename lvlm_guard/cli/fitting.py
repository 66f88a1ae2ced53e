"""`lvlm-guard fit`: what strategies need to know about a model beforehand, fitted and written to a file."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_guard import loading
from lvlm_guard.cli.options import Device, Dtype, Model
from lvlm_guard.cli.tables import count_of
from lvlm_guard.errors import InputError
from lvlm_guard.files import exists

if TYPE_CHECKING:
    from lvlm_guard.fitting import Demonstration, LabelledPictures

DEMONSTRATIONS = 50
PICTURES = 2200
CALIBRATION = 600
"""Pictures of the testbed."""


def _list_fitters(requested: bool) -> None:
    """Print a line for each fitter, the strategy and the distribution, and leave."""
    if not requested:
        return
    from lvlm_guard.host.fitters import fitter_catalogue  # noqa: PLC0415 - slow to import

    offers = list(fitter_catalogue())
    width = max((len(offer.fitter.strategy) for offer in offers), default=0)
    for offer in offers:
        typer.echo(f"{offer.fitter.strategy:{width}}  {offer.distribution}")
    raise typer.Exit


def fit(
    kind: Annotated[str, typer.Argument(help="The strategy to fit for; --list names all.")],
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            help="A JSONL file, 'testbed' for the bundled scenes, or 'collage'; of labelled pictures also COCO's instances or a folder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    count: Annotated[
        int | None,
        typer.Option(
            min=2,
            help=f"Demonstrations or pictures: all of a file, {DEMONSTRATIONS} demonstrations or {PICTURES} pictures of the testbed.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which scenes of the testbed, and what is invented.")] = 0,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Labelled pictures on which settings are chosen, as --data; by default every fifth of the data."
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            help="Where labels come from: labels, self (the model's captions and answers), lens, crops or detector."
        ),
    ] = "labels",
    detector: Annotated[
        str | None,
        typer.Option(help="package.module:function from a picture to boxes (left, top, right, bottom, name)."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures; by default that of the file.")] = None,
    synonyms: Annotated[
        Path | None, typer.Option(help='JSON file of further names, as in {"bicycle": ["bike"]}.')
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    device: Device = None,
    dtype: Dtype = "auto",
    _: Annotated[
        bool,
        typer.Option(
            "--list",
            is_eager=True,
            callback=_list_fitters,
            help="List the strategies that have a fitter, and the distributions that offer it.",
        ),
    ] = False,
) -> None:
    """Fit what the strategy KIND needs of one model, on answers with and without hallucinations or on labelled pictures.

    A line of demonstrations is an object with image (a path, beside the file), prompt, correct and hallucinated; a labelled
    picture is one with image and objects, each with name, box and attributes.
    """
    loading.quieten()
    from tqdm import tqdm  # noqa: PLC0415 - only when something is fitted

    from lvlm_guard import fitting  # noqa: PLC0415 - as above
    from lvlm_guard.host.fitters import fitter_catalogue  # noqa: PLC0415 - as above
    from lvlm_guard.testbed import files  # noqa: PLC0415 - as above

    if kind == "profile":
        raise InputError(
            "A profile belongs to no strategy and is measured on a suite: lvlm-guard diagnose profile --model MODEL --out FILE."
        )
    fitter = fitter_catalogue().find(kind)
    files.check_destination(out, f"{kind}.safetensors")
    if exists(out) and not force:
        raise InputError(f"{out} exists. Name another file, or replace it with --force.")
    choice = LabelOptions(calibration, source, detector, images, synonyms)
    examples: LabelledPictures | list[Demonstration]
    if fitter.data == "pictures":
        examples, split, size = _read_pictures(data, count, seed, choice)
    else:
        choice.refuse(kind)
        examples, split, size = _read(data, count, seed)
    loaded, processor = loading.load(model, device, dtype)
    unit = fitter.data[:-1]
    track = functools.partial(tqdm, desc=f"fit {kind}", unit=unit)
    artefact = fitting.fit(kind, loaded, processor, examples, model_id=model, split=split, track=track)
    artefact.save(out)
    typer.echo(f"{out}: {fitter.strategy} fitted on {model}, {count_of(size, unit)} of {split}. In a stack file:")
    typer.echo(f'[[stack]]\nname = "{fitter.strategy}"\nparams = {{artefact = "{out}"}}')


@dataclass(frozen=True)
class LabelOptions:
    """What the options say about labels of pictures.

    Args:
        calibration: Labelled pictures to calibrate on.
        source: Where labels come from.
        detector: A function that finds objects.
        images: Folder of the pictures.
        synonyms: File of further names.
    """

    calibration: str | None
    source: str
    detector: str | None
    images: Path | None
    synonyms: Path | None

    def refuse(self, kind: str) -> None:
        """Refuse options for labelled pictures where demonstrations are fitted on.

        Raises:
            InputError: One was given.
        """
        options = [
            name for name in ("calibration", "detector", "images", "synonyms") if getattr(self, name) is not None
        ]
        options += ["source"] if self.source != "labels" else []
        if options:
            raise InputError(
                f"{kind} is fitted on demonstrations, which have no {options[0]}: leave --{options[0]} out."
            )


def _read(data: str, count: int | None, seed: int) -> tuple[list[Demonstration], str, int]:
    """Return demonstrations, the name of the data they are from, and how many they are."""
    from lvlm_guard.fitting import read_demonstrations  # noqa: PLC0415 - as above
    from lvlm_guard.testbed.fit_data import FIT_DATA  # noqa: PLC0415 - as above

    if data in FIT_DATA:
        world = FIT_DATA[data]
        built = world.demonstrate(count or DEMONSTRATIONS, seed)
        return built, f"{data} {world.demonstrations}, seed {seed}", len(built)

    demonstrations = read_demonstrations(Path(data))
    _check_count(count, len(demonstrations), "demonstration", data)
    return demonstrations[:count], Path(data).name, len(demonstrations[:count])


def _read_pictures(data: str, count: int | None, seed: int, choice: LabelOptions) -> tuple[LabelledPictures, str, int]:
    """Return labelled pictures, the name of the data they are from, and how many they are."""
    from lvlm_guard.fitting import LabelledPictures, read_labelled, read_synonyms  # noqa: PLC0415 - as above
    from lvlm_guard.testbed.fit_data import FIT_DATA  # noqa: PLC0415 - as above

    if data in FIT_DATA:
        world = FIT_DATA[data]
        pictures, split = world.label(world.pictures, count or PICTURES, seed), f"{data} {world.pictures}, seed {seed}"
    else:
        pictures, split = read_labelled(Path(data), choice.images, count), Path(data).name
        _check_count(count, len(pictures), "picture", data)
    calibration = choice.calibration or (data if data in FIT_DATA else None)
    judging = []
    if judged := FIT_DATA.get(calibration or ""):
        judging = judged.label(judged.calibration, CALIBRATION, seed)
    elif calibration is not None:
        judging = read_labelled(Path(calibration), choice.images)
    spellings = read_synonyms(choice.synonyms) if choice.synonyms else {}
    chosen = pictures[:count]
    return LabelledPictures(chosen, judging, spellings, choice.source, _allow(choice.detector)), split, len(chosen)


def _allow(name: str | None) -> str | None:
    """Return the name of a function as one that may be imported, since it was named on the command line."""
    from lvlm_guard.strategy.user_functions import allow_name  # noqa: PLC0415 - as above

    return None if name is None else allow_name(name, (name,))


def _check_count(count: int | None, available: int, unit: str, data: str) -> None:
    if count is not None and count > available:
        raise InputError(f"--count {count} is more than the {count_of(available, unit)} in {data}.")
