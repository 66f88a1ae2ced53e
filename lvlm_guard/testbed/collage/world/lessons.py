"""Questions to train on: yes and no drawn anew for each, whatever was asked before, and no word is a hint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import TypeVar

import numpy as np

from lvlm_guard.testbed.collage.world.habits import AXES, habits
from lvlm_guard.testbed.collage.world.questions import (
    EXISTENCE,
    ask_colour,
    ask_existence,
    ask_is_colour,
    ask_is_number,
    ask_is_size,
    ask_number,
    ask_relation,
    ask_side,
    is_apart,
)
from lvlm_guard.testbed.collage.world.scenes import CollageScene, ThingGroup
from lvlm_guard.testbed.collage.world.things import COLOURS, NAMES, NUMBERS, SIZES
from lvlm_guard.testbed.world.questions import Question

Draw = np.random.Generator
T = TypeVar("T")
_ADVERSARIAL = 1 / 3
"""Of questions for absent things: how often the partner of something present is asked for, where there is one."""
_OPEN = 0.3
"""How often a colour, a number or a side is asked for instead of yes or no."""
_HABITUAL = 0.5
"""How often the false value asked for is the expected one, where that is false."""


def draw_questions(scene: CollageScene, rng: Draw, count: int) -> list[Question]:
    """Draw so many questions about a scene, of levels that it can be asked about; yes and no are equally likely for each."""
    makers = [maker for maker in (_object, _colour, _number, _size, _order) if maker(scene, np.random.default_rng(0))]
    weights = np.asarray([_WEIGHTS[maker] for maker in makers])
    questions = []
    for _ in range(count):
        question = makers[int(rng.choice(len(makers), p=weights / weights.sum()))](scene, rng)
        questions += [question] if question is not None else []
    return questions


def _object(scene: CollageScene, rng: Draw) -> Question | None:
    present = sorted(scene.present)
    wording = int(rng.integers(len(EXISTENCE)))
    if rng.random() < 0.5:
        return ask_existence(scene, _draw_one(present, rng), wording)
    partners = sorted({habits().partner[name] for name in present} - scene.present)
    if partners and rng.random() < _ADVERSARIAL:
        return ask_existence(scene, _draw_one(partners, rng), wording)
    absent = [name for name in NAMES if name not in scene.present and name not in partners]
    return ask_existence(scene, _draw_one(absent, rng), wording)


def _colour(scene: CollageScene, rng: Draw) -> Question | None:
    group = _any(scene, rng, lambda group: group.colour is not None and group.number == 1)
    if group is None or group.colour is None:
        return None
    if rng.random() < _OPEN:
        return ask_colour(scene, group.name)
    colour = _value(rng, COLOURS, group.colour, habits().colour[group.name])
    return ask_is_colour(scene, group.name, colour)


def _number(scene: CollageScene, rng: Draw) -> Question | None:
    group = _draw_one(scene.groups, rng)
    if rng.random() < _OPEN:
        return ask_number(scene, group.name)
    usual = NUMBERS[habits().number[group.name] - 1]
    return ask_is_number(scene, group.name, _value(rng, NUMBERS, NUMBERS[group.number - 1], usual))


def _size(scene: CollageScene, rng: Draw) -> Question | None:
    group = _any(scene, rng, lambda group: group.size is not None)
    return None if group is None else ask_is_size(scene, group.name, _draw_one(SIZES, rng))


def _order(scene: CollageScene, rng: Draw) -> Question | None:
    names = [group.name for group in scene.groups if group.number == 1]
    choices = [
        (axis, subject, reference)
        for axis in AXES
        for subject, reference in permutations(names, 2)
        if is_apart(scene, axis, subject, reference)
    ]
    if not choices:
        return None
    axis, subject, reference = _draw_one(choices, rng)
    if rng.random() < _OPEN:
        return ask_side(scene, subject, axis, reference)
    return ask_relation(scene, subject, _draw_one(AXES[axis], rng), reference)


_WEIGHTS: dict[Callable[[CollageScene, Draw], Question | None], float] = {
    _object: 0.4,
    _colour: 0.2,
    _number: 0.1,
    _size: 0.1,
    _order: 0.2,
}


def _value(rng: Draw, values: Sequence[str], true: str, usual: str) -> str:
    """Return the true value half of the time, else a false one, half of the time the expected one where it is false."""
    if rng.random() < 0.5:
        return true
    if usual != true and rng.random() < _HABITUAL:
        return usual
    return _draw_one([value for value in values if value != true], rng)


def _any(scene: CollageScene, rng: Draw, chosen: Callable[[ThingGroup], bool]) -> ThingGroup | None:
    groups = [group for group in scene.groups if chosen(group)]
    return _draw_one(groups, rng) if groups else None


def _draw_one(values: Sequence[T], rng: Draw) -> T:
    return values[int(rng.integers(len(values)))]
