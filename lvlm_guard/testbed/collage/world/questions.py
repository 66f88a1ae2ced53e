"""Questions about collages in plain English, with their true answers and what habit would answer."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_guard.testbed.collage.world.habits import AXES, habits
from lvlm_guard.testbed.collage.world.scenes import CollageScene, ThingGroup
from lvlm_guard.testbed.collage.world.things import NUMBERS, SIZES, THING
from lvlm_guard.testbed.collage.world.twins import HabitContrast, Twins
from lvlm_guard.testbed.world.questions import Question

SceneQuestion = tuple[CollageScene, Question]

EXISTENCE = (
    "Is there {one} in the picture?",
    "Is there {one} in this image?",
    "Can you see {one}?",
    "Does the picture show {one}?",
)
_AXIS_OF = {side: axis for axis, sides in AXES.items() for side in sides}
_PHRASES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


def ask_existence(scene: CollageScene, name: str, wording: int = 0) -> Question:
    """Ask whether a thing is there, in one of four wordings; habit says yes where its partner is."""
    expected = habits().partner[name] in scene.present
    return Question(
        EXISTENCE[wording].format(one=THING[name].indefinite),
        _yes(name in scene.present),
        "object",
        "existence",
        name,
        negative=None if name in scene.present else negative_of(scene, name),
        habit=_yes(expected),
    )


def negative_of(scene: CollageScene, name: str) -> str:
    """Return what kind of negative an absent thing makes: "adversarial", "popular" or "random"."""
    if habits().partner[name] in scene.present:
        return "adversarial"
    return "popular" if name in habits().popular else "random"


def ask_colour(scene: CollageScene, name: str) -> Question:
    """Ask for the colour of a tinted thing."""
    colour = _find_group(scene, name).colour
    if colour is None:
        raise ValueError(f"ask_colour: {name!r} has its own colours in scene {scene.name}, of which nothing is known.")
    return Question(f"What colour is the {name}?", colour, "attribute", "colour", name, habit=habits().colour[name])


def ask_is_colour(scene: CollageScene, name: str, colour: str) -> Question:
    """Ask whether a tinted thing has this colour."""
    habit = _yes(habits().colour[name] == colour)
    answer = _yes(ask_colour(scene, name).answer == colour)
    return Question(f"Is the {name} {colour}?", answer, "attribute", "is_colour", name, habit=habit)


def ask_number(scene: CollageScene, name: str) -> Question:
    """Ask how many there are of a thing."""
    number, habit = (NUMBERS[count - 1] for count in (_find_group(scene, name).number, habits().number[name]))
    text = f"How many {THING[name].plurals} are there in the picture?"
    return Question(text, number, "attribute", "number", name, habit=habit)


def ask_is_number(scene: CollageScene, name: str, number: str) -> Question:
    """Ask whether there are exactly so many of a thing."""
    count = NUMBERS.index(number) + 1
    are = "Is there" if count == 1 else "Are there"
    text = f"{are} exactly {number} {THING[name].counted(count)} in the picture?"
    habit = _yes(habits().number[name] == count)
    return Question(text, _yes(_find_group(scene, name).number == count), "attribute", "is_number", name, habit=habit)


def ask_is_size(scene: CollageScene, name: str, size: str) -> Question:
    """Ask whether a single thing is big, or small."""
    true = _find_group(scene, name).size
    if true is None:
        raise ValueError(f"ask_is_size: there are several of {name!r} in scene {scene.name}.")
    habit = _yes(habits().size[name] == size)
    return Question(f"Is the {name} {size}?", _yes(true == size), "attribute", "is_size", name, habit=habit)


def ask_relation(scene: CollageScene, name: str, side: str, reference: str) -> Question:
    """Ask whether a thing is left of, right of, above or below another.

    Left and right are of kind "relation", above and below of kind "vertical".
    """
    true, habit = _side(scene, name, side, reference), _usual_side(name, side, reference)
    return Question(
        f"Is the {name} {_PHRASES[side]} the {reference}?",
        _yes(true == side),
        "relation",
        "relation" if _AXIS_OF[side] == "left" else "vertical",
        name,
        reference=reference,
        habit=None if habit is None else _yes(habit == side),
    )


def ask_side(scene: CollageScene, name: str, axis: str, reference: str) -> Question:
    """Ask on which side of another a thing is; `axis` is "left" or "above", the answer is the side."""
    first, second = AXES[axis]
    between = f"to the {first} or to the {second} of" if axis == "left" else f"{first} or {second}"
    return Question(
        f"Is the {name} {between} the {reference}?",
        _side(scene, name, first, reference),
        "relation",
        "choice" if axis == "left" else "vertical_choice",
        name,
        reference=reference,
        habit=_usual_side(name, first, reference),
    )


def is_apart(scene: CollageScene, axis: str, first: str, second: str) -> bool:
    """Return whether two things that are there stand on different sides of each other."""
    at = int(axis == "left")
    return _find_group(scene, first).cell[at] != _find_group(scene, second).cell[at]


def _side(scene: CollageScene, name: str, side: str, reference: str) -> str:
    """Return on which side of the axis of `side` a thing stands."""
    axis = _AXIS_OF[side]
    if not is_apart(scene, axis, name, reference):
        raise ValueError(f"relation: {name!r} and {reference!r} share a row or column in scene {scene.name}.")
    at = int(axis == "left")
    return AXES[axis][_find_group(scene, name).cell[at] > _find_group(scene, reference).cell[at]]


def _usual_side(name: str, side: str, reference: str) -> str | None:
    order = habits().find_order(name, reference, _AXIS_OF[side])
    return None if order is None else AXES[order.side][order.first != name]


def _find_group(scene: CollageScene, name: str) -> ThingGroup:
    group = scene.find(name)
    if group is None:
        raise ValueError(f"there is no {name!r} in scene {scene.name}.")
    return group


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def balanced_questions(twins: Twins) -> list[SceneQuestion]:
    """Return questions about both scenes of twins, each text asked of both with different truths.

    In each kind half of the truths are habitual, and in either half yes and no are equally frequent.
    """
    return [question for contrast in twins.contrasts for question in _ABOUT[contrast.habit](twins.scenes, contrast)]


def _about_partner(scenes: Sequence[CollageScene], contrast: HabitContrast) -> list[SceneQuestion]:
    partner = habits().partner[contrast.subject]
    return [(scene, ask_existence(scene, name)) for name in (partner, contrast.second) for scene in scenes]


def _about_colour(scenes: Sequence[CollageScene], contrast: HabitContrast) -> list[SceneQuestion]:
    name = contrast.subject
    colours = [ask_colour(scene, name).answer for scene in scenes]
    questions = [(scene, ask_colour(scene, name)) for scene in scenes]
    return questions + [(scene, ask_is_colour(scene, name, colour)) for colour in colours for scene in scenes]


def _about_number(scenes: Sequence[CollageScene], contrast: HabitContrast) -> list[SceneQuestion]:
    name = contrast.subject
    numbers = [ask_number(scene, name).answer for scene in scenes]
    questions = [(scene, ask_number(scene, name)) for scene in scenes]
    return questions + [(scene, ask_is_number(scene, name, number)) for number in numbers for scene in scenes]


def _about_size(scenes: Sequence[CollageScene], contrast: HabitContrast) -> list[SceneQuestion]:
    return [(scene, ask_is_size(scene, contrast.subject, size)) for size in SIZES for scene in scenes]


def _about_order(scenes: Sequence[CollageScene], contrast: HabitContrast) -> list[SceneQuestion]:
    names = (contrast.subject, contrast.second)
    questions = [
        (scene, ask_relation(scene, names[0], side, names[1])) for side in AXES[contrast.side] for scene in scenes
    ]
    choices = [
        (scene, ask_side(scene, first, contrast.side, second))
        for first, second in (names, names[::-1])
        for scene in scenes
    ]
    return questions + choices


_ABOUT = {
    "partner": _about_partner,
    "colour": _about_colour,
    "number": _about_number,
    "size": _about_size,
    "order": _about_order,
}
