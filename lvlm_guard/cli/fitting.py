"""`lvlm-guard fit`: what strategies need to know about a model beforehand, fitted and written to a file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_guard import loading
from lvlm_guard.cli.options import Device, Dtype, Model
from lvlm_guard.cli.tables import count_of
from lvlm_guard.errors import InputError
from lvlm_guard.files import exists

if TYPE_CHECKING:
    from lvlm_guard.fitting import Demonstration

DEMONSTRATIONS = 50


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
    data: Annotated[str, typer.Option(help="A JSONL file, or 'testbed' for captions of the bundled training scenes.")],
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    count: Annotated[
        int | None, typer.Option(min=2, help=f"Demonstrations: all of a file, {DEMONSTRATIONS} of the testbed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which scenes of the testbed, and what is invented.")] = 0,
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
    """Fit what the strategy KIND needs of one model, on answers with and without hallucinations.

    A line of the JSONL file is an object with image (a path, beside the file), prompt, correct and hallucinated.
    """
    loading.quieten()
    from tqdm import tqdm  # noqa: PLC0415 - only when something is fitted

    from lvlm_guard import fitting  # noqa: PLC0415 - as above
    from lvlm_guard.host.fitters import fitter_catalogue  # noqa: PLC0415 - as above
    from lvlm_guard.testbed import files  # noqa: PLC0415 - as above

    fitter_catalogue().find(kind)
    files.check_destination(out, f"{kind}.safetensors")
    if exists(out) and not force:
        raise InputError(f"{out} exists. Name another file, or replace it with --force.")
    demonstrations, split = _read(data, count, seed)
    loaded, processor = loading.load(model, device, dtype)
    track = functools.partial(tqdm, desc=f"fit {kind}", unit="demonstration")
    artefact = fitting.fit(kind, loaded, processor, demonstrations, model_id=model, split=split, track=track)
    artefact.save(out)
    typer.echo(
        f"{out}: {kind} fitted on {model}, {count_of(len(demonstrations), 'demonstration')} of {split}. In a stack file:"
    )
    typer.echo(f'[[stack]]\nname = "{kind}"\nparams = {{artefact = "{out}"}}')


def _read(data: str, count: int | None, seed: int) -> tuple[list[Demonstration], str]:
    """Return demonstrations, and the name of the data they are from."""
    if data == loading.BUNDLED:
        from lvlm_guard.testbed.demonstrations import SPLIT, build_demonstrations  # noqa: PLC0415 - as above

        return build_demonstrations(count or DEMONSTRATIONS, seed), f"testbed {SPLIT}, seed {seed}"
    from lvlm_guard.fitting import read_demonstrations  # noqa: PLC0415 - as above

    demonstrations = read_demonstrations(Path(data))
    if count is not None and count > len(demonstrations):
        raise InputError(
            f"--count {count} is more than the {count_of(len(demonstrations), 'demonstration')} in {data}."
        )
    return demonstrations[:count], Path(data).name
