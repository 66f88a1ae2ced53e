"""Questions about a scene with their true answers, and the ones a scene is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from lvlm_guard.testbed.world.habits import CATEGORIES, COLOUR_NAMES, HOME, PARTNER, TYPICAL_COLOUR, residents
from lvlm_guard.testbed.world.scenes import SPLITS, Scene, absent_partners

NEGATIVES = ("random", "popular", "adversarial")
"""Kinds of absent objects to ask for.

`random`: at home elsewhere. `popular`: at home here, its partner absent too. `adversarial`: its habitual partner is here.
"""

EXISTENCE = ("is there a {0} ?", "is there a {0} in the {1} ?", "is there a {0} in the image ?", "do you see a {0} ?")


_SIDEWAYS = ("left", "right")
_VERTICAL = ("above", "below")


@dataclass(frozen=True)
class Question:
    """One question. `level` is "object", "attribute" or "relation".

    `negative` says which kind of absent object is asked for, `reference` what the subject is related to. `habit` is what
    the training scenes would lead to as an answer without looking at the subject, None where they have no habit.
    """

    text: str
    answer: str
    level: str
    kind: str
    subject: str
    negative: str | None = None
    reference: str | None = None
    habit: str | None = None


def existence(scene: Scene, subject: str, wording: int = 0, negative: str | None = None) -> Question:
    """Ask whether a category is in the picture, in one of four wordings."""
    answer = "yes" if subject in scene.present else "no"
    text = EXISTENCE[wording].format(subject, scene.background)
    expected = PARTNER[subject] in scene.present and HOME[subject] == scene.background
    return Question(text, answer, "object", "existence", subject, negative, habit="yes" if expected else "no")


def what_colour(scene: Scene, subject: str) -> Question:
    """Ask for the colour of an object that is there."""
    thing = scene.find(subject)
    if thing is None:
        raise ValueError(f"what_colour: there is no {subject!r} in scene {scene.name}.")
    text, habit = f"what colour is the {subject} ?", TYPICAL_COLOUR[subject]
    return Question(text, thing.colour, "attribute", "colour", subject, habit=habit)


def is_colour(scene: Scene, subject: str, colour: str) -> Question:
    """Ask whether an object that is there has this colour."""
    thing = scene.find(subject)
    if thing is None:
        raise ValueError(f"is_colour: there is no {subject!r} in scene {scene.name}.")
    answer = "yes" if thing.colour == colour else "no"
    habit = "yes" if TYPICAL_COLOUR[subject] == colour else "no"
    return Question(f"is the {subject} {colour} ?", answer, "attribute", "is_colour", subject, habit=habit)


def relation(scene: Scene, subject: str, direction: str, reference: str) -> Question:
    """Ask whether one object is left of, right of, above or below another; both have to be there.

    Left and right are of kind "relation", above and below, for which there is no habit, of kind "vertical".
    """
    true = _direction(scene, subject, direction, reference)
    of = " of" if direction in _SIDEWAYS else ""
    kind = "relation" if direction in _SIDEWAYS else "vertical"
    text = f"is the {subject} {direction}{of} the {reference} ?"
    answer = "yes" if true == direction else "no"
    usual = _habitual_side(subject, reference) if direction in _SIDEWAYS else None
    habit = None if usual is None else "yes" if usual == direction else "no"
    return Question(text, answer, "relation", kind, subject, reference=reference, habit=habit)


def choice(scene: Scene, subject: str, reference: str, axis: tuple[str, str] = _SIDEWAYS) -> Question:
    """Ask on which side of another object one is; the answer is the side."""
    text = f"is the {subject} {axis[0]} or {axis[1]}{' of' if axis == _SIDEWAYS else ''} the {reference} ?"
    true = _direction(scene, subject, axis[0], reference)
    habit = _habitual_side(subject, reference) if axis == _SIDEWAYS else None
    return Question(text, true, "relation", "choice", subject, reference=reference, habit=habit)


def _habitual_side(subject: str, reference: str) -> str | None:
    if PARTNER[subject] != reference:
        return None
    return _SIDEWAYS[CATEGORIES.index(subject) > CATEGORIES.index(reference)]


def _direction(scene: Scene, subject: str, direction: str, reference: str) -> str:
    """The true one of a direction and its opposite."""
    subject_object, reference_object = scene.find(subject), scene.find(reference)
    if subject_object is None or reference_object is None:
        raise ValueError(f"relation: {subject!r} and {reference!r} are not both in scene {scene.name}.")
    axis = int(direction in _SIDEWAYS)
    if subject_object.cell[axis] == reference_object.cell[axis]:
        raise ValueError(f"relation: {subject!r} and {reference!r} share a {('row', 'column')[axis]} in {scene.name}.")
    before, after = _SIDEWAYS if axis else _VERTICAL
    return before if subject_object.cell[axis] < reference_object.cell[axis] else after


def place(scene: Scene, subject: str) -> Question:
    """Ask in which row and column an object stands: only ever taught, never scored."""
    thing = scene.find(subject)
    if thing is None:
        raise ValueError(f"place: there is no {subject!r} in scene {scene.name}.")
    answer = f"row{thing.cell[0] + 1} column{thing.cell[1] + 1}"
    return Question(f"where is the {subject} ?", answer, "relation", "place", subject)


def related(scene: Scene, axis: tuple[str, str] = _SIDEWAYS, *, habitual: bool = False) -> list[tuple[str, str]]:
    """Return pairs of present objects that differ along the axis, first of a habitual pair first; on request only those."""
    along = int(axis == _SIDEWAYS)
    return [
        (first.category, second.category)
        for first, second in permutations(scene.objects, 2)
        if first.cell[along] != second.cell[along] and _comes_first(first.category, second.category, habitual=habitual)
    ]


def _comes_first(first: str, second: str, *, habitual: bool) -> bool:
    if PARTNER[first] == second:
        return CATEGORIES.index(first) < CATEGORIES.index(second)
    return not habitual and first < second


def absent(scene: Scene, negative: str) -> tuple[str, ...]:
    """The absent categories that make a negative of this kind, possibly none."""
    at_home = residents(scene.background)
    if negative == "adversarial":
        return absent_partners(scene)
    if negative == "popular":
        return tuple(name for name in at_home if name not in scene.present and PARTNER[name] not in scene.present)
    if negative == "random":
        return tuple(
            name
            for name in CATEGORIES
            if name not in at_home and name not in scene.present and PARTNER[name] not in scene.present
        )
    raise ValueError(f"absent: no negatives called {negative!r}. Known: {', '.join(NEGATIVES)}.")


def scored_questions(scene: Scene) -> list[Question]:
    """The questions a scene is scored on: about the level whose habit it breaks, or about all three where it breaks none.

    Which object is asked for is drawn from the scene's own random stream, so it never varies between runs.
    """
    rng = np.random.default_rng((SPLITS[scene.split], scene.seed, scene.index, 2))
    if scene.broken is None:
        return _scored_objects(scene, rng) + _scored_attributes(scene, None, rng) + _scored_relations(scene, None, rng)
    if scene.broken.level == "object":
        return _scored_objects(scene, rng)
    if scene.broken.level == "attribute":
        return _scored_attributes(scene, scene.broken.subject, rng)
    return _scored_relations(scene, (scene.broken.subject, scene.broken.expected), rng)


def _scored_objects(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One 'yes' and one 'no' of each kind there is."""
    questions = [existence(scene, _pick(sorted(scene.present), rng))]
    for negative in NEGATIVES:
        candidates = absent(scene, negative)
        if candidates:
            questions.append(existence(scene, _pick(candidates, rng), negative=negative))
    return questions


def _scored_attributes(scene: Scene, subject: str | None, rng: np.random.Generator) -> list[Question]:
    """What colour, whether the true one, and whether a false one: the habitual one where that is false."""
    chosen = _pick(sorted(scene.present), rng) if subject is None else subject
    question = what_colour(scene, chosen)
    wrong = [TYPICAL_COLOUR[chosen]] if TYPICAL_COLOUR[chosen] != question.answer else _other_colours(question.answer)
    return [question, is_colour(scene, chosen, question.answer), is_colour(scene, chosen, _pick(wrong, rng))]


def _scored_relations(scene: Scene, pair: tuple[str, str] | None, rng: np.random.Generator) -> list[Question]:
    """Left and right asked both ways, to choose between, and above or below, for which there is no habit."""
    pairs = [pair] if pair else related(scene, habitual=True) or related(scene)
    if not pairs:
        return []
    first, second = pairs[int(rng.integers(len(pairs)))]
    if rng.random() < 0.5:
        first, second = second, first
    questions = [relation(scene, first, side, second) for side in _SIDEWAYS] + [choice(scene, first, second)]
    stacked = related(scene, _VERTICAL)
    if stacked:
        above, below = stacked[int(rng.integers(len(stacked)))]
        questions.append(relation(scene, above, _pick(_VERTICAL, rng), below))
    return questions


def _other_colours(colour: str) -> list[str]:
    return [name for name in COLOUR_NAMES if name != colour]


def _pick(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]
