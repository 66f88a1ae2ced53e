"""Sheets and single scenes of either world, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from lvlm_guard.errors import InputError, nearest, quote
from lvlm_guard.testbed.collage.world import sheet as collage_sheet
from lvlm_guard.testbed.collage.world import splits
from lvlm_guard.testbed.collage.world.picture_parts import open_pictures
from lvlm_guard.testbed.world import scenes, sheet


@dataclass(frozen=True)
class _World:
    """What is drawn of a world: its splits, the usual one first, a sheet by (split, count, seed), and a scene by (split, seed)."""

    splits: Sequence[str]
    draw_sheet: Callable[[str, int, int], Image.Image]
    draw_one: Callable[[str, int], Image.Image]


def _draw_scenes(split: str, count: int, seed: int) -> Image.Image:
    return sheet.draw_sheet(scenes.scenes(split, count, seed))


def _draw_scene(split: str, seed: int) -> Image.Image:
    return scenes.scene(split, 0, seed).picture


def _draw_collage(split: str, seed: int) -> Image.Image:
    return splits.scene(split, 0, seed).draw(open_pictures(splits.RENDERING[split]))


def _usual_first(names: Mapping[str, int], usual: str) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: name != usual))


_WORLDS: Mapping[str, _World] = {
    "scenes": _World(_usual_first(scenes.SPLITS, "counterfactual"), _draw_scenes, _draw_scene),
    "collage": _World(_usual_first(splits.SPLITS, "shift"), collage_sheet.draw_sheet, _draw_collage),
}


def check_world(world: str) -> None:
    """Refuse a world that there is not.

    Raises:
        InputError: There is no such world.
    """
    if world not in _WORLDS:
        raise InputError(f"no world named {quote(world)}.{nearest(world, _WORLDS)}")


def check_split(world: str, split: str | None) -> str:
    """Return the split of a world, by default the one that is measured first.

    Raises:
        InputError: The world has no such split.
    """
    names = _WORLDS[world].splits
    if split is not None and split not in names:
        raise InputError(f"no split named {quote(split)}.{nearest(split, names)}")
    return names[0] if split is None else split


def draw_png(world: str, split: str, seed: int, count: int | None) -> bytes:
    """Return a PNG file: a sheet of so many scenes, or the first scene as a model sees it where `count` is None.

    Raises:
        InputError: The pictures of the collages are not there.
    """
    of = _WORLDS[world]
    return sheet.png(of.draw_one(split, seed) if count is None else of.draw_sheet(split, count, seed))
