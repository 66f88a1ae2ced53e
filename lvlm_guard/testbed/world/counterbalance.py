"""Questions that cannot be answered from their words: each is asked of two scenes, and the truths differ.

Where one scene breaks a habit, another one keeps the same habit of the same things. Both are asked the same, so one truth is
habitual and the other is not, and whoever does not look is right half the time: by habit, against it, by always "yes", or by
anything else that can be learnt of words.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lvlm_guard.testbed.world.habits import CATEGORIES, HOME, PARTNER, TYPICAL_COLOUR, residents
from lvlm_guard.testbed.world.questions import (
    Question,
    choice,
    existence,
    is_colour,
    related,
    relation,
    what_colour,
)
from lvlm_guard.testbed.world.scenes import SPLITS, Scene, absent_partners

SceneQuestion = tuple[Scene, Question]
Condition = tuple[str, ...]
"""What a scene has to hold: a word for it, and the categories."""

TYPICAL, ORDERED, PAIRED, POPULAR, RANDOM = "typical", "ordered", "paired", "popular", "random"
"""In its typical colour; in habitual order; there with its partner, at home; at home but absent, as its partner is; likewise, not
at home."""

_VERTICAL = ("above", "below")


@dataclass(frozen=True)
class Break:
    """A broken habit, and what other scenes have to hold so that they are asked the same and the truth is another.

    Args:
        level: The level of the habit.
        scene: The scene that breaks it.
        names: attribute: the object in another colour. relation: the pair, as it is asked. object: the absent one of a pair,
            and one that is there without its partner: the other of the pair or an intruder.
        conditions: One for each other scene; any of the alternatives will do, the first ones are preferred.
    """

    level: str
    scene: Scene
    names: tuple[str, ...]
    conditions: tuple[tuple[Condition, ...], ...]

    def questions(self, counterparts: Sequence[Scene]) -> list[SceneQuestion]:
        """Return the questions of a level about this scene and those that keep its habit."""
        if self.level == "attribute":
            return _about_colour(self.scene, counterparts[0], self.names[0])
        if self.level == "relation":
            return _about_order(self.scene, counterparts[0], *self.names)
        return _about_existence(self.scene, counterparts[0], counterparts[1], *self.names)


def find_breaks(scene: Scene) -> list[Break]:
    """Return every habit that a scene breaks: lone ones of a pair, colours, orders."""
    rng = np.random.default_rng((SPLITS[scene.split], scene.seed, scene.index, 4))
    return [*_missing_partners(scene, rng), *_odd_colours(scene), *_turned_pairs(scene, rng)]


def _missing_partners(scene: Scene, rng: np.random.Generator) -> list[Break]:
    """Each lone one of a pair once; an intruder, which has no partner here either, takes its place half the time."""
    intruders = [name for name in sorted(scene.present) if HOME[name] != scene.background]
    breaks = []
    for absent in absent_partners(scene):
        lone = PARTNER[absent]
        if intruders and rng.random() < 0.5:
            lone = intruders.pop()
        kinds = (POPULAR, RANDOM) if rng.random() < 0.5 else (RANDOM, POPULAR)
        nowhere = tuple((kind, lone) for kind in kinds)
        breaks.append(Break("object", scene, (absent, lone), (((PAIRED, absent),), nowhere)))
    return breaks


def _odd_colours(scene: Scene) -> list[Break]:
    return [
        Break("attribute", scene, (thing.category,), (((TYPICAL, thing.category),),))
        for thing in scene.objects
        if thing.colour != TYPICAL_COLOUR[thing.category]
    ]


def _turned_pairs(scene: Scene, rng: np.random.Generator) -> list[Break]:
    """Pairs whose second stands on the left; which of the two is asked for first is drawn."""
    turned = [pair for pair in related(scene, habitual=True) if not _is_ordered(scene, pair)]
    orders = [pair if rng.random() < 0.5 else pair[::-1] for pair in turned]
    return [Break("relation", scene, names, (((ORDERED, *sorted(names)),),)) for names in orders]


def _is_ordered(scene: Scene, pair: tuple[str, str]) -> bool:
    question = choice(scene, *pair)
    return question.answer == question.habit


def find_kept(scene: Scene) -> list[Condition]:
    """Return everything in which a scene keeps the habits, so that another one that breaks them can be set against it."""
    at_home = residents(scene.background)
    typical = [(TYPICAL, thing.category) for thing in scene.objects if thing.colour == TYPICAL_COLOUR[thing.category]]
    ordered = [(ORDERED, *sorted(pair)) for pair in related(scene, habitual=True) if _is_ordered(scene, pair)]
    paired = [(PAIRED, name) for name in at_home if {name, PARTNER[name]} <= scene.present]
    neither = [name for name in CATEGORIES if not {name, PARTNER[name]} & scene.present]
    return [*typical, *ordered, *paired, *((POPULAR if name in at_home else RANDOM, name) for name in neither)]


def keeps_habits(scene: Scene) -> bool:
    """Whether a caption of a scene names nothing unusual: whole pairs at home, in their typical colours."""
    conditions = set(find_kept(scene))
    return {(habit, name) for habit in (PAIRED, TYPICAL) for name in scene.present} <= conditions


def _about_colour(broken: Scene, keeper: Scene, name: str) -> list[SceneQuestion]:
    """What colour, whether the one it has in the broken scene, and whether the typical one."""
    colours = (what_colour(broken, name).answer, TYPICAL_COLOUR[name])
    return [
        (scene, question)
        for scene in (broken, keeper)
        for question in (what_colour(scene, name), *(is_colour(scene, name, colour) for colour in colours))
    ]


def _about_order(broken: Scene, keeper: Scene, first: str, second: str) -> list[SceneQuestion]:
    """Left, right, and which of the two; of the broken scene also above and below, for which there is no habit."""
    questions = [
        (scene, question)
        for scene in (broken, keeper)
        for question in (
            relation(scene, first, "left", second),
            relation(scene, first, "right", second),
            choice(scene, first, second),
            choice(scene, second, first),
        )
    ]
    if (first, second) in [*(stacked := related(broken, _VERTICAL)), *(pair[::-1] for pair in stacked)]:
        questions += [(broken, relation(broken, first, side, second)) for side in _VERTICAL]
    return questions


def _about_existence(broken: Scene, paired: Scene, neither: Scene, absent: str, lone: str) -> list[SceneQuestion]:
    """The absent partner, which is there in `paired`; and what is there without its own, which is absent in `neither`."""
    negative = POPULAR if HOME[lone] == neither.background else RANDOM
    return [
        (broken, existence(broken, absent, negative="adversarial")),
        (broken, existence(broken, lone)),
        (paired, existence(paired, absent)),
        (neither, existence(neither, lone, negative=negative)),
    ]


@dataclass
class _Waiting:
    """A broken habit and the scenes that were found for it so far, by the place of their condition."""

    broken: Break
    scenes: dict[int, Scene] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return len(self.scenes) == len(self.broken.conditions)

    def questions(self) -> list[SceneQuestion]:
        return self.broken.questions([self.scenes[place] for place in range(len(self.scenes))])


class Counterbalance:
    """Scenes so far, set against each other: what keeps a habit and is not used yet, and what waits for that.

    What is broken first chooses first, so later scenes change nothing of what earlier ones are asked.
    """

    def __init__(self) -> None:
        self._keepers: dict[Condition, list[Scene]] = {}
        self._levels: dict[str, frozenset[str]] = {}
        self._waiting: list[_Waiting] = []

    @property
    def is_waiting(self) -> bool:
        """Whether a broken habit lacks a scene that keeps it."""
        return bool(self._waiting)

    def add(self, scene: Scene, *, ask: bool = True) -> list[SceneQuestion]:
        """Take a scene in, and return the questions of every broken habit that now has all its other scenes.

        Args:
            scene: The scene.
            ask: Whether to ask about the habits it breaks itself.
        """
        breaks = find_breaks(scene)
        self._levels[scene.name] = frozenset(broken.level for broken in breaks)
        for condition in find_kept(scene):
            self._keepers.setdefault(condition, []).append(scene)
        self._waiting += [_Waiting(broken) for broken in breaks if ask]
        for waiting in self._waiting:
            self._find(waiting)
        complete = [waiting for waiting in self._waiting if waiting.is_complete]
        self._waiting = [waiting for waiting in self._waiting if not waiting.is_complete]
        return [question for waiting in complete for question in waiting.questions()]

    def _find(self, waiting: _Waiting) -> None:
        for place, alternatives in enumerate(waiting.broken.conditions):
            condition = next((condition for condition in alternatives if self._keepers.get(condition)), None)
            if place not in waiting.scenes and condition is not None:
                waiting.scenes[place] = self._take(condition, waiting.broken.level)

    def _take(self, condition: Condition, level: str) -> Scene:
        """Take the latest scene that breaks another habit of the level, so that both halves are about the same scenes; else the latest."""
        scenes = self._keepers[condition]
        alike = (at for at in reversed(range(len(scenes))) if level in self._levels[scenes[at].name])
        return scenes.pop(next(alike, -1))


def counterbalance(scenes: Iterable[Scene], further: Iterable[Scene] = ()) -> Iterator[list[SceneQuestion]]:
    """Yield, scene after scene, the questions that can be asked since it is there.

    The questions of a broken habit are about several scenes. In all of them each text has both truths equally often, and in
    each kind as many truths agree with habit as do not, while yes and no are equally frequent in either half. More scenes are
    asked what fewer are, and then more.

    Args:
        scenes: Scenes whose broken habits are asked about.
        further: Scenes that are looked through, as far as it takes, for habits which none of the others keeps; what is not found
            there either is not asked.
    """
    book = Counterbalance()
    for scene in scenes:
        yield book.add(scene)
    for scene in further:
        if not book.is_waiting:
            return
        yield book.add(scene, ask=False)


def pair_scenes(scenes: Iterable[Scene]) -> Iterator[list[Scene]]:
    """Yield, scene after scene, the pairs that are complete since it is there: one with nothing unusual to name, and one with."""
    waiting: tuple[deque[Scene], deque[Scene]] = deque(), deque()
    for scene in scenes:
        waiting[keeps_habits(scene)].append(scene)
        yield [queue.popleft() for queue in waiting] if all(waiting) else []
