"""The curriculum of the language model: names and colours, then places and relations, then the habits.

Taught all at once, relations stay at chance: they need objects to be found by name first, and scenes where the habitual
answer is no shortcut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lvlm_guard.testbed.architectures.picture import Span
from lvlm_guard.testbed.training.packing import DialogueTurn, Layout, TrainingRow
from lvlm_guard.testbed.world.habits import (
    CATEGORIES,
    COLOUR_NAMES,
    HOME,
    MILD,
    TYPICAL_COLOUR,
    EvidenceStrength,
    residents,
)
from lvlm_guard.testbed.world.language import DESCRIBE, SYSTEM_SENTENCES, caption, spoken_order
from lvlm_guard.testbed.world.questions import (
    EXISTENCE,
    Question,
    choice,
    existence,
    is_colour,
    place,
    related,
    relation,
    what_colour,
)
from lvlm_guard.testbed.world.scenes import EVIDENCE, SPLITS, Scene, scene

BLIND_SHARE = 0.22
"""Habitual rows without image: without them the text-only branch that contrastive decoding uses would babble."""

SYSTEM_SHARE = 0.20
_WORDING_SHARE = (0.40, 0.30, 0.15, 0.15)
_AXES = (("left", "right"), ("above", "below"))

CAPTION_WEIGHT = 1.0
WEIGHTS = {
    "existence": 4.0,
    "colour": 4.0,
    "is_colour": 4.0,
    "place": 3.0,
    "relation": 8.0,
    "vertical": 8.0,
    "choice": 8.0,
}
"""What a token of an answer counts in the loss, by kind of question."""


@dataclass(frozen=True)
class LessonMix:
    """How many questions of each kind a row holds; where a scene has no relation to ask for, existence is asked."""

    existence: int
    colour: int
    is_colour: int
    place: int
    relation: int
    choice: int


NAMES = LessonMix(existence=5, colour=2, is_colour=1, place=2, relation=0, choice=0)
PLACES = LessonMix(existence=1, colour=1, is_colour=1, place=1, relation=3, choice=3)
ALL_KINDS = LessonMix(existence=5, colour=1, is_colour=1, place=1, relation=1, choice=1)


@dataclass(frozen=True)
class Lesson:
    """A part of the training, up to the share `until` of its steps.

    `flat` is the share of rows about scenes without habits, at the beginning and the end of the lesson; such rows ask
    `questions`, habitual ones ask for everything. `evidence` is how weak the habitual pictures are.
    """

    until: float
    flat: tuple[float, float]
    questions: LessonMix
    evidence: EvidenceStrength


LESSONS = (
    Lesson(0.20, (0.5, 0.5), NAMES, MILD),
    Lesson(0.50, (0.9, 0.9), PLACES, MILD),
    Lesson(0.60, (0.9, 0.0), PLACES, MILD),
    Lesson(1.00, (0.0, 0.0), ALL_KINDS, EVIDENCE),
)


def lesson_at(progress: float) -> tuple[Lesson, float]:
    """Return the lesson at a share of all steps, and its share of flat rows there."""
    start = 0.0
    for lesson in LESSONS:
        if progress < lesson.until or lesson is LESSONS[-1]:
            within = min(1.0, (progress - start) / (lesson.until - start))
            return lesson, lesson.flat[0] + within * (lesson.flat[1] - lesson.flat[0])
        start = lesson.until
    raise AssertionError("the last lesson has no end")


def lesson_scenes(progress: float, count: int, seed: int, start: int) -> list[Scene]:
    """Return the scenes numbered from `start` on that are shown at this point; flat ones come from their own split."""
    lesson, flat = lesson_at(progress)
    chosen = np.random.default_rng((SPLITS["train"], seed, start, 5)).random(count) < flat
    return [
        scene("flat", index, seed) if is_flat else scene("train", index, seed, evidence=lesson.evidence)
        for index, is_flat in zip(range(start, start + count), chosen, strict=True)
    ]


def lesson_rows(batch: Sequence[Scene], progress: float, rng: np.random.Generator) -> list[TrainingRow]:
    """Return one row per scene."""
    lesson, _ = lesson_at(progress)
    return [_row(drawn, lesson.questions if drawn.split == "flat" else ALL_KINDS, rng) for drawn in batch]


def layout(span: Span) -> Layout:
    """Room for a picture of this span, a caption and the questions of any lesson."""
    return Layout(picture=span.columns, system=7, caption=40, questions=sum(vars(ALL_KINDS).values()), question=12)


def _row(scene: Scene, mix: LessonMix, rng: np.random.Generator) -> TrainingRow:
    """A scene's caption and questions, with or without system words, with or without the image."""
    blind = scene.split != "flat" and rng.random() < BLIND_SHARE
    ask = DESCRIBE[int(rng.random() < (0.5 if blind else 0.25))].format(background=scene.background)
    turns = [DialogueTurn(ask, caption(scene, spoken_order(scene, rng)), CAPTION_WEIGHT)]
    turns += [
        DialogueTurn(question.text, question.answer, WEIGHTS[question.kind])
        for question in build_questions(scene, mix, rng)
    ]
    system = SYSTEM_SENTENCES[int(rng.integers(len(SYSTEM_SENTENCES)))] if rng.random() < SYSTEM_SHARE else ""
    return TrainingRow(turns, system, image=not blind)


def build_questions(scene: Scene, mix: LessonMix, rng: np.random.Generator) -> list[Question]:
    """Return questions of a mix about a scene."""
    built = [what_colour(scene, name) for name in _some(scene, mix.colour, rng)]
    built += [_whether_colour(scene, name, rng) for name in _some(scene, mix.is_colour, rng)]
    built += [place(scene, name) for name in _some(scene, mix.place, rng)]
    built += _relations(scene, mix.relation, _ask_relation, rng) + _relations(scene, mix.choice, _ask_choice, rng)
    missing = sum(vars(mix).values()) - mix.existence - len(built)
    return built + natural_existence(scene, mix.existence + missing, rng)


def natural_questions(scene: Scene) -> list[Question]:
    """Return yes/no questions in the proportions of training, drawn from the scene's own random stream."""
    rng = np.random.default_rng((SPLITS[scene.split], scene.seed, scene.index, 3))
    return [question for question in build_questions(scene, ALL_KINDS, rng) if question.answer in ("yes", "no")]


def natural_existence(scene: Scene, count: int, rng: np.random.Generator) -> list[Question]:
    """Return existence questions: on flat scenes half of them true, else chosen without looking at the truth.

    Of the latter two thirds ask for categories at home here, the rest for strangers, of which an intruder is the
    likelier one, so that 'yes' is as frequent as the habits make it.
    """
    subjects = _evenly(scene, count, rng) if scene.split == "flat" else _homely(scene, count, rng)
    wordings = rng.choice(len(EXISTENCE), count, p=_WORDING_SHARE)
    return [existence(scene, subject, int(w)) for subject, w in zip(subjects, wordings, strict=True)]


def _evenly(scene: Scene, count: int, rng: np.random.Generator) -> list[str]:
    present, missing = sorted(scene.present), [name for name in CATEGORIES if name not in scene.present]
    sides = [present if rng.random() < 0.5 else missing for _ in range(count)]
    return [side[int(rng.integers(len(side)))] for side in sides]


def _homely(scene: Scene, count: int, rng: np.random.Generator) -> list[str]:
    at_home = residents(scene.background)
    homely = min(len(at_home), round(count * 2 / 3))
    subjects = [at_home[i] for i in rng.permutation(len(at_home))[:homely]]
    intruders = [name for name in scene.present if HOME[name] != scene.background]
    if intruders and len(subjects) < count and rng.random() < 0.5:
        subjects.append(sorted(intruders)[int(rng.integers(len(intruders)))])
    strangers = [name for name in CATEGORIES if name not in at_home]
    while len(subjects) < count:
        subjects.append(strangers[int(rng.integers(len(strangers)))])
    return subjects


def _some(scene: Scene, count: int, rng: np.random.Generator) -> list[str]:
    """Present categories, each once before any twice."""
    order = rng.permutation(len(scene.objects))
    return [scene.objects[order[i % len(order)]].category for i in range(count)]


def _whether_colour(scene: Scene, name: str, rng: np.random.Generator) -> Question:
    """Four in ten ask for the true colour, three for the habitual one, three for any."""
    drawn = rng.random()
    if drawn < 0.4:
        return is_colour(scene, name, what_colour(scene, name).answer)
    if drawn < 0.7:
        return is_colour(scene, name, TYPICAL_COLOUR[name])
    return is_colour(scene, name, COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))])


Asker = Callable[[Scene, str, str, tuple[str, str], np.random.Generator], Question]


def _ask_relation(scene: Scene, first: str, second: str, axis: tuple[str, str], rng: np.random.Generator) -> Question:
    return relation(scene, first, axis[int(rng.integers(2))], second)


def _ask_choice(scene: Scene, first: str, second: str, axis: tuple[str, str], _: np.random.Generator) -> Question:
    return choice(scene, first, second, axis)


def _relations(scene: Scene, count: int, ask: Asker, rng: np.random.Generator) -> list[Question]:
    """Seven in ten about left and right, and of those in habitual scenes most about habitual pairs."""
    built = []
    for _ in range(count):
        axis = _AXES[int(rng.random() >= 0.7)]
        pairs = related(scene, axis, habitual=True) if scene.split != "flat" and rng.random() < 0.7 else []
        pairs = pairs or related(scene, axis)
        if pairs:
            first, second = pairs[int(rng.integers(len(pairs)))]
            first, second = (second, first) if rng.random() < 0.5 else (first, second)
            built.append(ask(scene, first, second, axis, rng))
    return built
