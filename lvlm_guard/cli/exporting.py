"""`lvlm-guard export`: what a stack does, as files for programs without a guard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lvlm_guard import loading
from lvlm_guard.cli.options import ONE_STACK, Allow, Device, Dtype, Model
from lvlm_guard.cli.tables import count_of
from lvlm_guard.errors import InputError

Kind = Literal["checkpoint", "vectors"]


def export(
    to: Annotated[Kind, typer.Option(metavar="KIND", help="checkpoint, or vectors.")],
    model: Model,
    stack: Annotated[str, typer.Option(metavar="STACK", help=f"{ONE_STACK}.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it is whole or not there.")],
    reader: Annotated[
        str | None,
        typer.Option(
            metavar="READER", help="Of vectors: easysteer, repeng, llama.cpp or vllm-lens.", show_default="none"
        ),
    ] = None,
    allow: Allow = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is there.")] = False,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Bake the linear edits of a stack into a checkpoint, or write its directions as steering vectors."""
    loading.quieten()
    from lvlm_guard.export.checkpoint import CheckpointExport  # noqa: PLC0415 - slow to import
    from lvlm_guard.export.vectors import VectorExport  # noqa: PLC0415 - as above
    from lvlm_guard.host import stack as stacks  # noqa: PLC0415 - as above

    strategies = stacks.Stack.of(stack, allow=allow or ())
    if to == "vectors":
        if reader is None:
            raise InputError(
                "Vectors are written for a program: add --reader easysteer, repeng, llama.cpp or vllm-lens."
            )
        names = VectorExport(model, strategies, out, device, dtype, force, reader=reader).run()
        typer.echo(f"{out}: {', '.join(names)}. README.md there says what {reader} does otherwise than the guard.")
        return
    if reader is not None:
        raise InputError("A checkpoint is read by whatever read the model: leave --reader out.")
    comparison, tensors = CheckpointExport(model, strategies, out, device, dtype, force).run()
    typer.echo(
        f"{out}: {count_of(tensors, 'tensor')} changed. Logits of the guarded and the exported model differ by "
        f"{comparison.difference:.2g} at most (tolerance {comparison.tolerance:.2g}; the stack changes them by "
        f"{comparison.effect:.2g}), in standard deviations, over {comparison.steps} steps of "
        f"{count_of(comparison.prompts, 'prompt')} with a picture."
    )
