"""`lvlm-guard testbed`: look at the drawn scenes, train their model again, build the second world's model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lvlm_guard import loading
from lvlm_guard.cli import collage
from lvlm_guard.cli.program import Command, Program
from lvlm_guard.cli.tables import count_of
from lvlm_guard.errors import InputError, quote

MOST_SCENES = 200
SHEET = Path("sheet.png")


class Timed(Command):
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


app = Program(help="Work with the bundled testbed.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Work with the bundled testbed: its drawn scenes and the small model trained on them."""


@app.command("show")
def show(
    split: Annotated[
        str | None,
        typer.Option(
            help="train, calibration, iid, counterfactual or flat; of collages train, calibration, iid, shift or flat.",
            show_default="counterfactual; shift",
        ),
    ] = None,
    count: Annotated[int, typer.Option(help=f"How many scenes, 1 to {MOST_SCENES}.")] = 24,
    seed: Annotated[int, typer.Option(help="The same seed draws the same scenes.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The PNG to write.", show_default="sheet.png")
    ] = None,
    scene: Annotated[
        Path | None,
        typer.Option("--one", metavar="FILE", help="Write one scene as the model sees it, a PNG, instead of a sheet."),
    ] = None,
    world: Annotated[str, typer.Option(help="scenes or collage, whose pictures have to be fetched.")] = "scenes",
) -> None:
    """Draw scenes of a split on one sheet, enlarged, each over its true caption; or one scene as the model sees it."""
    loading.quieten()
    from lvlm_guard.testbed import files, sheets  # noqa: PLC0415 - only when it is asked for

    sheets.check_world(world)
    split = sheets.check_split(world, split)
    if not 1 <= count <= MOST_SCENES:
        raise InputError(f"count must be from 1 to {MOST_SCENES}, got {count}.")
    _check_seed(seed)
    if out is not None and scene is not None:
        raise InputError("--out names a sheet and --one a single scene. Leave one of them out.")
    path = scene or out or SHEET
    if path.suffix.lower() != ".png":
        option = "--out" if scene is None else "--one"
        raise InputError(f"{option} is a PNG, but got {quote(str(path))}. Name it {path.stem or 'scene'}.png.")
    files.check_destination(path, SHEET.name if scene is None else "scene.png")
    files.write_whole(path, sheets.draw_png(world, split, seed, count if scene is None else None))
    typer.echo(f"{path}: {count_of(count if scene is None else 1, 'scene')} of {split}, seed {seed}")


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
    typer.echo(f"{out}: trained. Try it: lvlm-guard demo --model {out} --stack vsv")


app.command("build")(collage.build)
app.command("card")(collage.card)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}.")
