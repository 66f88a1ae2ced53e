"""Demonstrations to fit on: from a JSONL file, or captions of the bundled training scenes with something invented."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lvlm_guard.errors import InputError
from lvlm_guard.fitting import Demonstration
from lvlm_guard.testbed.world import language
from lvlm_guard.testbed.world.compose import SceneObject
from lvlm_guard.testbed.world.habits import CATEGORIES, COLOUR_NAMES, PARTNER, TYPICAL_COLOUR
from lvlm_guard.testbed.world.scenes import Scene, absent_partners, scenes

FIELDS = ("image", "prompt", "correct", "hallucinated")
SPLIT = "train"
MOST_REPORTED = 5


def read(path: Path) -> list[Demonstration]:
    """Demonstrations of a JSONL file; pictures are found beside it.

    Raises:
        InputError: The file cannot be read, is empty, or has lines at fault, which are named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data {path} cannot be read: {error}.") from None
    found, faults = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            row, fault = _row(line, path.parent)
            found.append(row)
            faults += [f"line {number}: {fault}"] if fault else []
    if faults:
        more = f" ({len(faults) - MOST_REPORTED} more)" if len(faults) > MOST_REPORTED else ""
        raise InputError(f"{path} has rows that cannot be used: {'; '.join(faults[:MOST_REPORTED])}{more}.")
    if not found:
        raise InputError(f"{path} holds no demonstrations: a line is an object with {', '.join(FIELDS)}.")
    return [row for row in found if row is not None]


def _row(line: str, folder: Path) -> tuple[Demonstration | None, str]:
    """A line as a demonstration, or what is wrong with it."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        return None, f"not JSON ({error})"
    if not isinstance(row, dict):
        return None, f"an object is wanted, got {type(row).__name__}"
    wrong = [name for name in FIELDS if not isinstance(row.get(name), str) or not row[name].strip()]
    if wrong:
        return None, f"text is wanted for {', '.join(wrong)}"
    if row["correct"] == row["hallucinated"]:
        return None, "correct and hallucinated are the same"
    picture = folder / row["image"]
    try:
        with Image.open(picture) as opened:
            opened.verify()
    except (OSError, SyntaxError) as error:  # a broken PNG is a syntax error
        return None, f"the picture cannot be read ({error})"
    return Demonstration(picture, row["prompt"], row["correct"], row["hallucinated"]), ""


def of_testbed(count: int, seed: int = 0) -> list[Demonstration]:
    """Captions of training scenes, correct and with something invented.

    In turn: an absent habitual partner is added, a colour is replaced by another, an object by another. A scene without
    an absent partner has a colour replaced instead.
    """
    rng = np.random.default_rng((seed, 11))
    return [_invented(scene, number, rng) for number, scene in enumerate(scenes(SPLIT, count, seed))]


def _invented(scene: Scene, number: int, rng: np.random.Generator) -> Demonstration:
    order = language.spoken_order(scene, rng)
    changed = _changed(scene, order, number % 3, rng)
    correct, hallucinated = language.caption(scene, order), language.caption(scene, changed)
    return Demonstration(scene.picture, language.DESCRIBE[0], correct, hallucinated)


def _changed(scene: Scene, order: Sequence[SceneObject], how: int, rng: np.random.Generator) -> list[SceneObject]:
    things = list(order)
    absent = absent_partners(scene)
    at = int(rng.integers(len(things)))
    if how == 0 and absent:
        partner = absent[int(rng.integers(len(absent)))]
        beside = next(place for place, thing in enumerate(things) if thing.category == PARTNER[partner])
        things.insert(beside + 1, replace(things[beside], category=partner, colour=TYPICAL_COLOUR[partner]))
    elif how == 2:  # noqa: PLR2004 - the third way
        others = [name for name in CATEGORIES if name not in scene.present]
        things[at] = replace(things[at], category=others[int(rng.integers(len(others)))])
    else:
        others = [name for name in COLOUR_NAMES if name != things[at].colour]
        things[at] = replace(things[at], colour=others[int(rng.integers(len(others)))])
    return things
