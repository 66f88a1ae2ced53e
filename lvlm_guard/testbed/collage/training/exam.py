"""Measuring as the training goes: how well yes and no are told apart on scenes that were never shown, and what is said blind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.bench.scoring.margins import Tokens
from lvlm_guard.bench.scoring.scores import auc
from lvlm_guard.testbed.collage.training.course import Course
from lvlm_guard.testbed.collage.training.rows import PackedTurn, Packer
from lvlm_guard.testbed.collage.training.student import Student
from lvlm_guard.testbed.collage.world.questions import balanced_questions
from lvlm_guard.testbed.collage.world.scenes import CollageScene
from lvlm_guard.testbed.collage.world.splits import twins
from lvlm_guard.testbed.world.questions import Question

LEVELS = ("object", "attribute", "relation")


@dataclass(frozen=True)
class Exam:
    """Scenes with questions about each that are answered by yes or no."""

    scenes: tuple[CollageScene, ...]
    questions: tuple[tuple[Question, ...], ...]
    features: Tensor


def make_exam(course: Course, split: str, count: int, seed: int) -> Exam:
    """Return an exam of so many twins of a split."""
    scenes: list[CollageScene] = []
    questions: list[tuple[Question, ...]] = []
    for number in range(count):
        pair = twins(split, number, seed)
        posed = [(drawn, question) for drawn, question in balanced_questions(pair) if question.answer in ("yes", "no")]
        scenes += pair.scenes
        questions += [tuple(question for drawn, question in posed if drawn == scene) for scene in pair.scenes]
    return Exam(tuple(scenes), tuple(questions), course.features(scenes))


@torch.no_grad()
def take(student: Student, processor: Any, exam: Exam, *, picture: str = "own") -> dict[str, float]:
    """Return AUC and accuracy by level, and the shares of wrong answers that habit gives.

    Args:
        student: The model.
        processor: Its tokenizer and chat template.
        exam: The questions.
        picture: "own", "other" for that of the scene after next, or "none".
    """
    margins = measure_margins(student, processor, exam, picture=picture)
    flat = [question for questions in exam.questions for question in questions]
    return summarise(margins, flat)


def summarise(margins: Sequence[float], questions: Sequence[Question]) -> dict[str, float]:
    """Return the figures of `take` from a margin for each question."""
    figures = {}
    for level in LEVELS:
        pairs = [
            (margin, question) for margin, question in zip(margins, questions, strict=True) if question.level == level
        ]
        if pairs:
            truths = [question.answer == "yes" for _, question in pairs]
            figures[f"{level} auc"] = auc([margin for margin, _ in pairs], truths)
            right = [(margin > 0) == truth for (margin, _), truth in zip(pairs, truths, strict=True)]
            figures[f"{level} accuracy"] = sum(right) / len(right)
            for habitual in (True, False):
                chosen = [
                    hit
                    for hit, (_, question) in zip(right, pairs, strict=True)
                    if (question.habit == question.answer) == habitual
                ]
                figures[f"{level} {'kept' if habitual else 'broken'}"] = sum(chosen) / max(1, len(chosen))
    figures["says yes"] = sum(margin > 0 for margin in margins) / len(margins)
    return {name: round(value, 4) for name, value in figures.items()}


@torch.no_grad()
def measure_margins(student: Student, processor: Any, exam: Exam, *, picture: str = "own") -> list[float]:
    """Return log p(yes) less log p(no) for every question of an exam, in its order."""
    packer = Packer(processor, exam.features.shape[1])
    words = Tokens.of(processor.tokenizer)
    assert words is not None
    features = exam.features.roll(2, 0) if picture == "other" else exam.features
    margins: list[float] = []
    for at, questions in enumerate(exam.questions):
        rows = packer.pack([[PackedTurn(question.text, "") for question in questions]], blind=picture == "none")
        hidden = student.hidden(rows, None if picture == "none" else features[at : at + 1])
        logits = student.logits(hidden[rows.targets >= 0])
        yes, no = (logits[:, list(ids)].logsumexp(-1) for ids in (words.yes, words.no))
        margins += (yes - no).tolist()
    return margins
