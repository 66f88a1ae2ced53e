"""Questions about a scene with their true answers: the training mixture and the ones a model is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .scenes import SPLITS, Scene, absent_partners
from .world import CATEGORIES, COLOUR_NAMES, HOME, PARTNER, TYPICAL_COLOUR, residents

NEGATIVES = ("random", "popular", "adversarial")
"""Kinds of absent objects to ask for.

`random`: at home elsewhere. `popular`: at home here, its partner absent too. `adversarial`: its habitual partner is here.
"""

_EXISTENCE = ("is there a {0} ?", "is there a {0} in the {1} ?", "is there a {0} in the image ?", "do you see a {0} ?")
_EXISTENCE_SHARE = (0.40, 0.30, 0.15, 0.15)


@dataclass(frozen=True)
class Question:
    """One question. `level` is "object" or "attribute"; `negative` says which kind of absent object is asked for."""

    text: str
    answer: str
    level: str
    kind: str
    subject: str
    negative: str | None = None


def existence(scene: Scene, subject: str, wording: int = 0, negative: str | None = None) -> Question:
    """Asks whether a category is in the picture, in one of four wordings."""
    answer = "yes" if subject in scene.present else "no"
    text = _EXISTENCE[wording].format(subject, scene.background)
    return Question(text, answer, "object", "existence", subject, negative)


def what_colour(scene: Scene, subject: str) -> Question:
    """Asks for the colour of an object that is there."""
    thing = scene.find(subject)
    if thing is None:
        raise ValueError(f"what_colour: there is no {subject!r} in scene {scene.name}.")
    return Question(f"what colour is the {subject} ?", thing.colour, "attribute", "colour", subject)


def is_colour(scene: Scene, subject: str, colour: str) -> Question:
    """Asks whether an object that is there has this colour."""
    thing = scene.find(subject)
    if thing is None:
        raise ValueError(f"is_colour: there is no {subject!r} in scene {scene.name}.")
    answer = "yes" if thing.colour == colour else "no"
    return Question(f"is the {subject} {colour} ?", answer, "attribute", "is_colour", subject)


def natural_existence(scene: Scene, count: int, rng: np.random.Generator) -> list[Question]:
    """Existence questions chosen without looking at the truth, so that 'yes' is as frequent as the habits make it.

    Two thirds ask for categories at home here, the rest for strangers, of which an intruder is the likelier one.
    """
    here = residents(scene.background)
    homely = min(len(here), round(count * 2 / 3))
    subjects = [here[i] for i in rng.permutation(len(here))[:homely]]
    intruders = [name for name in scene.present if HOME[name] != scene.background]
    if intruders and len(subjects) < count and rng.random() < 0.5:
        subjects.append(sorted(intruders)[int(rng.integers(len(intruders)))])
    strangers = [name for name in CATEGORIES if name not in here]
    while len(subjects) < count:
        subjects.append(strangers[int(rng.integers(len(strangers)))])
    wordings = rng.choice(len(_EXISTENCE), count, p=_EXISTENCE_SHARE)
    return [existence(scene, subject, int(w)) for subject, w in zip(subjects, wordings, strict=True)]


def natural_colours(scene: Scene, what: int, whether: int, rng: np.random.Generator) -> list[Question]:
    """Colour questions about objects that are there; half of the yes/no ones ask for the habitual colour."""
    order = [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    chosen = [order[i % len(order)].category for i in range(what + whether)]
    asked = [what_colour(scene, subject) for subject in chosen[:what]]
    for subject in chosen[what:]:
        habitual = rng.random() < 0.5
        colour = TYPICAL_COLOUR[subject] if habitual else COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))]
        asked.append(is_colour(scene, subject, colour))
    return asked


def absent(scene: Scene, negative: str) -> tuple[str, ...]:
    """The absent categories that make a negative of this kind, possibly none."""
    here = residents(scene.background)
    if negative == "adversarial":
        return absent_partners(scene)
    if negative == "popular":
        return tuple(name for name in here if name not in scene.present and PARTNER[name] not in scene.present)
    if negative == "random":
        return tuple(
            name
            for name in CATEGORIES
            if name not in here and name not in scene.present and PARTNER[name] not in scene.present
        )
    raise ValueError(f"absent: no negatives called {negative!r}. Known: {', '.join(NEGATIVES)}.")


def scored_questions(scene: Scene) -> list[Question]:
    """The questions a scene is scored on, at most six: one 'yes', one 'no' of each kind, two about colour.

    Which object is asked for is drawn from the scene's own random stream, so it never varies between runs.
    """
    rng = np.random.default_rng((SPLITS[scene.split], scene.seed, scene.index, 2))
    present = sorted(scene.present)
    asked = [existence(scene, _pick(present, rng))]
    for negative in NEGATIVES:
        candidates = absent(scene, negative)
        if candidates:
            asked.append(existence(scene, _pick(candidates, rng), negative=negative))
    asked.append(what_colour(scene, _pick(present, rng)))
    asked.append(_scored_is_colour(scene, _pick(present, rng), rng))
    return asked


def _scored_is_colour(scene: Scene, subject: str, rng: np.random.Generator) -> Question:
    """Half true; a false one asks for the habitual colour where that is false, else for any other."""
    thing = scene.find(subject)
    true = thing.colour if thing else ""
    if rng.random() < 0.5:
        return is_colour(scene, subject, true)
    habitual = TYPICAL_COLOUR[subject]
    return is_colour(
        scene, subject, habitual if habitual != true else _pick([c for c in COLOUR_NAMES if c != true], rng)
    )


def _pick(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


def natural_questions(scene: Scene) -> list[Question]:
    """Seven yes/no questions in the proportions of training, drawn from the scene's own random stream."""
    rng = np.random.default_rng((SPLITS[scene.split], scene.seed, scene.index, 3))
    return natural_existence(scene, 6, rng) + natural_colours(scene, 0, 1, rng)
