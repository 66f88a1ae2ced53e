"""Teaching the model: a projector in closed form, then steps over fresh scenes; it can be stopped at any time and resumes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from tqdm import tqdm

from lvlm_guard.testbed.collage.delta import Delta
from lvlm_guard.testbed.collage.training.course import Course, SeeingLesson
from lvlm_guard.testbed.collage.training.exam import make_exam, take
from lvlm_guard.testbed.collage.training.plan import SeeingPlan
from lvlm_guard.testbed.collage.training.progress import CHECKPOINT, TrainingProgress, settle_dtype
from lvlm_guard.testbed.collage.training.projection import fit_projector
from lvlm_guard.testbed.collage.training.student import Student, gather
from lvlm_guard.testbed.collage.world.pictures import ThingPictures
from lvlm_guard.testbed.collage.world.splits import scene
from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.files import clear_failure

LOG = "training.jsonl"
WARMUP = 10
"""Steps over which the rate rises; then it stays, and what is kept is the mean of the last checkpoints."""

_RATES = (1.0, 0.2, 1.0)
"""What the rate counts for the low-rank changes, the projector and the table of places."""
_FIT_FROM = 10_000_000
"""Number of the first scene that the projector is fitted on; none of them is shown in a step."""
_FIT_BATCH = 20


def teach(
    model: Any, processor: Any, pictures: ThingPictures, plan: SeeingPlan, folder: Path
) -> tuple[Delta, dict[str, Any]]:
    """Train until the plan is done, and return what was learnt and the figures of its end.

    Args:
        model: The assembled model. Its language model is changed in place: assemble another one to apply the delta to.
        processor: Its processor.
        pictures: Of the things, in the rendering of training.
        plan: How.
        folder: Where the checkpoint and the log are.

    Raises:
        InputError: `peft` is not installed.
        TestbedError: The checkpoint in the folder is of another plan or cannot be read, or there is no space.
    """
    plan = settle_dtype(plan, folder / CHECKPOINT)
    course = _make_course(model, processor, pictures, plan)
    student = Student(model, plan.rank, getattr(torch, str(plan.dtype)), plan.seed)
    optimizer = torch.optim.AdamW(_groups(student, plan), betas=(0.9, 0.95), weight_decay=0.0)
    progress, log = TrainingProgress(folder / CHECKPOINT, student, optimizer, plan), _Log(folder / LOG)
    if not progress.restore():
        log({"step": 0, "fitted": round(_fit(student, course, plan), 4)})
        progress.save(0)
    exam = make_exam(course, "calibration", plan.exam, plan.seed) if plan.exam_every else None
    steps = range(progress.step, plan.steps)
    for step in tqdm(steps, initial=progress.step, total=plan.steps, desc="seeing", mininterval=5):
        log({"step": step + 1, **_step(student, optimizer, course.lesson(step), step, plan)})
        if plan.saves(step + 1):
            progress.save(step + 1)
        if exam is not None and (step + 1) % plan.exam_every == 0:
            log({"step": step + 1, **take(student, processor, exam)})
    student.put(progress.mean())
    figures = {} if exam is None else take(student, processor, exam)
    log({"averaged": plan.averaged, **figures})
    return student.delta(), figures


def _make_course(model: Any, processor: Any, pictures: ThingPictures, plan: SeeingPlan) -> Course:
    return Course(
        model.model.vision_tower,
        processor,
        pictures,
        model.model.language_model.embed_tokens.weight.detach().float().clone(),
        batch=plan.batch,
        seed=plan.seed,
        questions=plan.questions,
        lending=plan.lending,
    )


def rate_at(step: int) -> float:
    """Return the share of the full rate that a step takes, between 0 and 1."""
    return min((step + 1) / WARMUP, 1.0)


def _groups(student: Student, plan: SeeingPlan) -> list[dict[str, Any]]:
    taught = student.taught()
    parts: tuple[Callable[[str], bool], ...] = (
        lambda name: name.startswith("language."),
        lambda name: name.startswith("projector."),
        lambda name: name == "places",
    )
    chosen = [[weight for name, weight in taught.items() if part(name)] for part in parts]
    return [
        {"params": weights, "lr": plan.rate * share, "full": plan.rate * share}
        for weights, share in zip(chosen, _RATES, strict=True)
    ]


def _fit(student: Student, course: Course, plan: SeeingPlan) -> float:
    """Set the projector to the closed form; return the share of the variance that it explains."""
    features: list[Tensor] = []
    targets: list[Tensor] = []
    for first in tqdm(range(0, plan.fitted, _FIT_BATCH), desc="first projector", mininterval=5):
        numbers = range(first, min(first + _FIT_BATCH, plan.fitted))
        scenes = [scene("train", _FIT_FROM + number, plan.seed) for number in numbers]
        features.append(course.features(scenes).flatten(0, 1))
        targets += [course.words(drawn) for drawn in scenes]
    return fit_projector(student.projector, torch.cat(features), torch.cat(targets))


def _step(
    student: Student, optimizer: torch.optim.Optimizer, lesson: SeeingLesson, step: int, plan: SeeingPlan
) -> dict[str, float]:
    started = time.monotonic()
    for group in optimizer.param_groups:
        group["lr"] = group["full"] * rate_at(step)
    optimizer.zero_grad(set_to_none=True)
    learnt, targets, weights = gather(lesson.rows)
    hidden = student.hidden(lesson.rows, lesson.features, lesson.loan, lesson.share)
    logits = student.logits(hidden[learnt])
    each = cross_entropy(logits, targets, reduction="none")
    loss = (each * weights).sum() / weights.sum()
    loss.backward()
    distance = _hold(student, lesson, plan) if step % plan.blind_every == 0 else None
    nn.utils.clip_grad_norm_(student.taught().values(), 1.0)
    optimizer.step()
    if not math.isfinite(loss.item()):
        raise TestbedError(f"the loss of step {step + 1} is {loss.item()}. The last checkpoint is untouched.")
    figures = {
        "loss": loss.item(),
        "answers": each[weights == 1].mean().item(),
        "captions": each[weights < 1].mean().item(),
        "seconds": time.monotonic() - started,
    }
    return {name: round(value, 4) for name, value in figures.items()} | ({"blind": distance} if distance else {})


def _hold(student: Student, lesson: SeeingLesson, plan: SeeingPlan) -> float:
    """Add the gradient of the distance from what the language model says without a picture; return the distance."""
    written = lesson.blind.blocks >= 0
    before = student.logits(student.untaught(lesson.blind)[written]).log_softmax(-1)
    after = student.logits(student.hidden(lesson.blind, None)[written]).log_softmax(-1)
    distance = kl_div(after, before, log_target=True, reduction="batchmean")
    (plan.blind * distance).backward()
    return round(distance.item(), 4)


class _Log:
    """Appends figures to a file, one line for each step."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, figures: dict[str, Any]) -> None:
        with clear_failure(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
