"""Demonstrations to fit on: captions of training collages, correct and with something invented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lvlm_guard.strategy.fitters import Demonstration
from lvlm_guard.testbed.collage.world.captions import DESCRIBE, describe_groups, spoken_order
from lvlm_guard.testbed.collage.world.habits import habits
from lvlm_guard.testbed.collage.world.picture_parts import open_pictures
from lvlm_guard.testbed.collage.world.scenes import CollageScene, ThingGroup
from lvlm_guard.testbed.collage.world.splits import RENDERING, scene
from lvlm_guard.testbed.collage.world.things import COLOURS, NAMES

SPLIT = "train"


def build_demonstrations(count: int, seed: int = 0, folder: Path | None = None) -> list[Demonstration]:
    """Build demonstrations from captions of training collages, correct and with something invented.

    In turn: an absent partner is added, a colour is given or replaced, a thing replaced by another.

    Args:
        count: How many.
        seed: Which scenes, and what is invented.
        folder: The folder of the parts; by default the usual one.

    Raises:
        InputError: The pictures are not there.
    """
    rng = np.random.default_rng((seed, 11))
    pictures = open_pictures(RENDERING[SPLIT], folder)
    demonstrations = []
    for number in range(count):
        collage = scene(SPLIT, number, seed)
        order = spoken_order(collage, rng)
        correct, hallucinated = describe_groups(order), describe_groups(_invent(collage, order, number % 3, rng))
        demonstrations.append(Demonstration(collage.draw(pictures), DESCRIBE[0], correct, hallucinated))
    return demonstrations


def _invent(collage: CollageScene, order: Sequence[ThingGroup], way: int, rng: np.random.Generator) -> list[ThingGroup]:
    """Return the groups in their order, with a partner (0), a colour (1) or a thing (2) that is not in the scene."""
    groups, index = list(order), int(rng.integers(len(order)))
    partner = habits().partner[groups[index].name]
    if way == 0 and partner not in collage.present:
        groups.insert(index + 1, replace(groups[index], name=partner, number=1, colour=None))
    elif way == 1:
        colours = [colour for colour in COLOURS if colour != groups[index].colour]
        groups[index] = replace(groups[index], colour=colours[int(rng.integers(len(colours)))])
    else:
        names = [name for name in NAMES if name not in collage.present]
        groups[index] = replace(groups[index], name=names[int(rng.integers(len(names)))])
    return groups
