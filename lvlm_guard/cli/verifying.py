"""`lvlm-guard verify`: what works on a model, shown by running it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lvlm_guard import loading
from lvlm_guard.cli.options import ONE_STACK, Allow, Device, Dtype
from lvlm_guard.cli.questions import check_picture, check_placeholder, check_question
from lvlm_guard.errors import InputError
from lvlm_guard.files import check_name, is_folder

if TYPE_CHECKING:
    from lvlm_guard.verification import Verification

FAILED = 1
PROMPT = "Describe this image."


def verify(
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A local folder, a hub id, or 'testbed' for the bundled model."),
    ] = None,
    stack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STACK", help=f"{ONE_STACK}; repeat for several stacks.", show_default="one for each mechanism"
        ),
    ] = None,
    allow: Allow = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A picture; repeat for one for each of three prompts.", show_default="drawn ones"
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What to ask about the first picture.")] = PROMPT,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the row as one line of JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the row to a JSON file, for the registry.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", metavar="FILE", help="Check a row that --out wrote; no model is loaded."),
    ] = None,
) -> None:
    """Run a model plain and guarded over a few steps, and show what is exact there and what it costs.

    Exit code 1 means that a check failed. What is refused is no failure.
    """
    if check is not None:
        _check_row(check, model)
        return
    if model is None:
        raise InputError("verify needs a model: add --model MODEL, or --check FILE to check a row.")
    _check_request(prompt, image or [], out)
    verification = _verify(model, stack, allow or [], image or [], prompt, device, dtype)
    _show(verification, as_json=as_json, out=out)
    if not verification.passed:
        raise typer.Exit(FAILED)


def _check_row(path: Path, model: str | None) -> None:
    from lvlm_guard.verification.rows import read_row  # noqa: PLC0415 - slow to import

    if model is not None:
        raise InputError("--check reads a row and runs no model. Leave out --model or --check.")
    typer.echo(f"{path}: valid. {read_row(path).summarize()}")


def _check_request(prompt: str, pictures: list[Path], out: Path | None) -> None:
    """Refuse what can be refused before a model is loaded."""
    check_question(prompt)
    for picture in pictures:
        check_picture(picture)
    if out is not None:
        check_name(out)
    if out is not None and not is_folder(out.absolute().parent):
        raise InputError(f"--out: there is no folder {str(out.parent)!r}. Make it first.")


def _verify(
    name: str,
    stacks: list[str] | None,
    allow: list[str],
    pictures: list[Path],
    prompt: str,
    device: str | None,
    dtype: str,
) -> Verification:
    """Read the stacks, load the model, and run all checks with a progress bar on stderr."""
    loading.quieten()
    from lvlm_guard.bench.running import systems  # noqa: PLC0415 - slow to import
    from lvlm_guard.cli import verification_tables  # noqa: PLC0415 - as above
    from lvlm_guard.guard import Guard  # noqa: PLC0415 - as above
    from lvlm_guard.verification import verify as run_verification  # noqa: PLC0415 - as above

    named: dict[str, Any] | None = systems.read_stacks(stacks, allow=allow) if stacks else None
    loaded, processor = loading.load(name, device, dtype)
    check_placeholder(prompt, processor)
    with verification_tables.progress() as watch:
        return run_verification(
            Guard(loaded, processor, None), named, prompt=prompt, pictures=pictures, watch=watch, name=_short(name)
        )


def _short(name: str) -> str | None:
    """Return what the bundled model is called; others say it themselves."""
    return name if name == loading.BUNDLED else None


def _show(verification: Verification, *, as_json: bool, out: Path | None) -> None:
    from lvlm_guard.cli import verification_tables  # noqa: PLC0415 - slow to import
    from lvlm_guard.verification.rows import write_row  # noqa: PLC0415 - as above

    if out is not None:
        write_row(verification, out)
    if as_json:
        typer.echo(verification.to_json())
        return
    verification_tables.show(verification, Console(highlight=False))
    typer.echo(verification.summarize())
