"""Every bundled strategy and control on the testbed's scenes: `python benchmarks/scenes.py all --models DIR --out RUNS`.

The second world, of collages, is compared alike, with the model that `lvlm-guard testbed build --world collage` left in DIR:
`python benchmarks/scenes.py run DIR --world collage --looks --dtype bfloat16 --out RUNS`, and `table --world collage`.

`all` answers both splits with the bundled model and every one that `seeds.py` left in DIR, then writes the tables. `run` does
one model (a folder that `testbed train` made, or `testbed`); both resume where they were stopped. `table` scores all runs under
RUNS and writes the pages and figures to commit. Strategies have their published settings, those that
are fitted beforehand are fitted on training and calibration scenes of the same model (`scenes_stacks.py`). Figures of small models on drawn scenes: nothing
about others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scenes_chart
import scenes_kept
import scenes_pages as pages
import transformers
from measuring import write_at_once
from scenes_stacks import stacks
from seeds import MANIFEST
from worlds import SCENES, WORLDS, World

from lvlm_guard import GuardError, InputError, loading
from lvlm_guard.bench.running import runner, store, systems
from lvlm_guard.bench.running.manifest import RunPlan


@dataclass(frozen=True)
class How:
    """How scenes are answered.

    Args:
        limit: At most so many items.
        only: Stacks; none takes all.
        dtype: Of the model.
        looks: Whether what questions about one picture begin with runs once.
    """

    limit: int | None = None
    only: Sequence[str] = ()
    dtype: str = "float32"
    looks: bool = False


def run(name: str, splits: Iterable[str], out: Path, how: How, world: World = SCENES) -> None:
    """Answer the scenes of some splits with one model."""
    loading.quieten()
    model, processor = loading.load(name, dtype=how.dtype)
    label = loading.BUNDLED if name == loading.BUNDLED else Path(name).name
    compared = systems.build_systems(stacks(model, processor, out / label / "fitted", how.only, world))
    for split in splits:
        plan = RunPlan({world.name: world.choose(split)}, compared, limit=how.limit, batch=world.batch, looks=how.looks)
        runner.run(plan, model, processor, out / label / split, model_id=label)


def made(models: Path | None) -> Mapping[str, Any]:
    """What `seeds.py` noted of the models it left in a folder, by name.

    Raises:
        InputError: The folder has no such note.
    """
    if models is None:
        return {}
    note = models / MANIFEST
    if not note.is_file():
        raise InputError(f"{models} has no {MANIFEST}: pass the folder that benchmarks/seeds.py filled.")
    return dict(json.loads(note.read_text(encoding="utf-8")))


def trained(models: Path) -> list[Path]:
    """The folders of all models that were noted.

    Raises:
        InputError: One of them is gone.
    """
    named = [models / name for name in made(models)]
    gone = [str(one) for one in named if not one.is_dir()]
    if gone:
        raise InputError(f"{models / MANIFEST} names models that are not there: {', '.join(gone)}. Run seeds.py again.")
    return named


def tabulate(runs: Path, out: Path, models: Path | None = None, world: World = SCENES) -> None:
    """Score every run of a world and write the pages, the figures and manifest of each run, and how the models were made.

    Runs of other models that were written into the folder before stand beside the new ones.
    """
    noted = made(models)
    folders = sorted({path.parent for path in runs.glob("*/*/manifest.json")}, key=_bundled_first)
    of_world = [folder for folder in folders if world.name in store.read(folder).suites]
    if not of_world:
        raise InputError(f"{runs} holds no run of {world.name}: expected MODEL/SPLIT/manifest.json.")
    scored = [pages.read(folder, world.name) for folder in of_world]
    new = {run.name for run in scored}
    kept = [run for run in scenes_kept.recall(out / world.name) if run.name not in new]
    all_runs = sorted([*kept, *scored], key=lambda run: (run.model != loading.BUNDLED, run.model, run.split))
    pages.write(scored, all_runs, out)
    for run in scored:
        scenes_kept.keep(run, out / world.name)
    write_at_once(out / f"{world.name}.svg", scenes_chart.draw(all_runs))
    if noted:
        write_at_once(out / world.name / "models.json", json.dumps(noted, indent=2, sort_keys=True) + "\n")


def _bundled_first(folder: Path) -> tuple[bool, Path]:
    return folder.parent.name != loading.BUNDLED, folder


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Every bundled strategy and control on the testbed's scenes.")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="answer the scenes with one model; resumes")
    running.add_argument("model", help="`testbed`, or a folder that `lvlm-guard testbed train` made")
    splits = sorted({split for world in WORLDS.values() for split in world.splits})
    running.add_argument("--split", choices=splits, action="append", help="both of the world unless told")
    tabling = commands.add_parser("table", help="score all runs and write the page")
    whole = commands.add_parser("all", help="both splits with the bundled model and those of --models, then the table")
    for one in (running, whole):
        one.add_argument("--limit", type=int, help="at most so many items, to see that it works")
        one.add_argument("--only", action="append", default=[], help="a stack; repeat for several; all unless told")
        one.add_argument("--dtype", default=How.dtype, help="of the model")
        one.add_argument("--looks", action="store_true", help="run what questions about one picture begin with once")
    for one in (running, tabling):
        one.add_argument("--world", choices=WORLDS, default=SCENES.name)
    for one in (tabling, whole):
        one.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
        one.add_argument("--models", type=Path, required=one is whole, help="folder that seeds.py filled")
    for one in (running, tabling, whole):
        one.add_argument("--out", type=Path, required=True, help="folder of the runs")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """The command line."""
    asked = arguments(given)
    transformers.logging.set_verbosity_error()
    try:
        _obey(asked)
    except GuardError as error:
        sys.exit(f"{error}")
    return 0


def _obey(asked: argparse.Namespace) -> None:
    if asked.command == "table":
        tabulate(asked.out, asked.results, asked.models, WORLDS[asked.world])
        return
    how = How(asked.limit, asked.only, asked.dtype, asked.looks)
    if asked.command == "run":
        world = WORLDS[asked.world]
        run(asked.model, asked.split or list(world.splits), asked.out, how, world)
        return
    for name in (loading.BUNDLED, *map(str, trained(asked.models))):
        run(name, SCENES.splits, asked.out, how)
    tabulate(asked.out, asked.results, asked.models)


if __name__ == "__main__":
    raise SystemExit(main())
