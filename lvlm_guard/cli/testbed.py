"""`lvlm-guard testbed`: look at the drawn scenes, train their model again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lvlm_guard import loading
from lvlm_guard.errors import InputError, nearest

MOST_SCENES = 200


class Timed(TyperCommand):
    """A command whose help says how long a training takes, read off the recipes when somebody asks."""

    def get_help(self, ctx: Any) -> str:
        """The help text with the minutes filled in."""
        loading.quieten()
        from lvlm_guard.testbed.architectures import ARCHITECTURES  # noqa: PLC0415 - slow to import

        explained: tuple[Any, ...] = (self, *self.params)
        for explanation in explained:
            for name, architecture in ARCHITECTURES.items():
                minutes = f"{architecture.minutes:g}"
                explanation.help = (explanation.help or "").replace(f"MINUTES[{name}]", minutes)
        return super().get_help(ctx)


app = typer.Typer(help="Work with the bundled testbed.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Work with the bundled testbed: its drawn scenes and the small model trained on them."""


@app.command("show")
def show(
    split: Annotated[str, typer.Option(help="train, calibration, iid, counterfactual or flat.")] = "counterfactual",
    count: Annotated[int, typer.Option(help=f"How many scenes, 1 to {MOST_SCENES}.")] = 24,
    seed: Annotated[int, typer.Option(help="The same seed draws the same scenes.")] = 0,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("sheet.png"),
) -> None:
    """Draw scenes of a split on one sheet, enlarged, each over its true caption."""
    loading.quieten()
    from lvlm_guard.testbed import files  # noqa: PLC0415 - only when it is asked for
    from lvlm_guard.testbed.world import scenes, sheet  # noqa: PLC0415 - only when it is asked for

    if split not in scenes.SPLITS:
        raise InputError(f"no split named {split!r}.{nearest(split, scenes.SPLITS)}")
    if not 1 <= count <= MOST_SCENES:
        raise InputError(f"count must be from 1 to {MOST_SCENES}, got {count}.")
    _check_seed(seed)
    if out.suffix.lower() != ".png":
        raise InputError(f"a sheet is a PNG, but --out is {out}. Name it {out.with_suffix('.png')}.")
    files.check_destination(out, "sheet.png")
    files.write_whole(out, sheet.png(sheet.draw_sheet(scenes.scenes(split, count, seed))))
    typer.echo(f"{out}: {count} scenes of {split}, seed {seed}")


@app.command("train", cls=Timed)
def run_training(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the finished model.")],
    arch: Annotated[str, typer.Option(help="llava or qwen2_vl.")] = "llava",
    seed: Annotated[int, typer.Option(help="The same seed, length and processes give the same weights.")] = 0,
    minutes: Annotated[
        float | None,
        typer.Option(help="Length on two CPU cores, by default MINUTES[llava]; scales the number of steps."),
    ] = None,
    processes: Annotated[int | None, typer.Option(help="One thread each, by default 2, on a GPU 1.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; a GPU takes one process.")] = "cpu",
) -> None:
    """Train the testbed's model from scratch.

    That takes about MINUTES[llava] minutes on two CPU cores, MINUTES[qwen2_vl] as qwen2_vl. Stopped half-way, the same command resumes from the last
    checkpoint in the folder.
    """
    loading.quieten()
    from lvlm_guard.testbed.training import train  # noqa: PLC0415 - only when it is asked for

    count = train.usual_processes(device) if processes is None else processes
    train.run(train.TrainingPlan(out, seed, minutes, count, device, arch=arch))
    typer.echo(f"{out}: trained. Try it: lvlm-guard demo --model {out}")


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}.")
