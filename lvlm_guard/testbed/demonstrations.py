"""Demonstrations to fit on: captions of the bundled training scenes, correct and with something invented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lvlm_guard.strategy.fitters import Demonstration
from lvlm_guard.testbed.world import language
from lvlm_guard.testbed.world.compose import SceneObject
from lvlm_guard.testbed.world.habits import CATEGORIES, COLOUR_NAMES, PARTNER, TYPICAL_COLOUR
from lvlm_guard.testbed.world.scenes import Scene, absent_partners, scenes

SPLIT = "train"


def build_demonstrations(count: int, seed: int = 0) -> list[Demonstration]:
    """Build demonstrations from captions of training scenes, correct and with something invented.

    In turn: an absent habitual partner is added, a colour is replaced by another, an object by another. A scene without
    an absent partner has a colour replaced instead.
    """
    rng = np.random.default_rng((seed, 11))
    return [_build_demonstration(scene, number, rng) for number, scene in enumerate(scenes(SPLIT, count, seed))]


def _build_demonstration(scene: Scene, number: int, rng: np.random.Generator) -> Demonstration:
    order = language.spoken_order(scene, rng)
    invented = _invent(scene, order, number % 3, rng)
    correct, hallucinated = language.caption(scene, order), language.caption(scene, invented)
    return Demonstration(scene.picture, language.DESCRIBE[0], correct, hallucinated)


def _invent(scene: Scene, order: Sequence[SceneObject], way: int, rng: np.random.Generator) -> list[SceneObject]:
    """Return the objects in their order, with a partner (0), a colour (1) or an object (2) that is not in the scene."""
    objects = list(order)
    absent = absent_partners(scene)
    index = int(rng.integers(len(objects)))
    if way == 0 and absent:
        partner = absent[int(rng.integers(len(absent)))]
        position = next(index for index, item in enumerate(objects) if item.category == PARTNER[partner])
        objects.insert(position + 1, replace(objects[position], category=partner, colour=TYPICAL_COLOUR[partner]))
    elif way == 2:
        categories = [category for category in CATEGORIES if category not in scene.present]
        objects[index] = replace(objects[index], category=categories[int(rng.integers(len(categories)))])
    else:
        colours = [colour for colour in COLOUR_NAMES if colour != objects[index].colour]
        objects[index] = replace(objects[index], colour=colours[int(rng.integers(len(colours)))])
    return objects
