"""Teaching the model: a projector in closed form, then steps over fresh scenes; it can be stopped at any time and resumes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from tqdm import tqdm

from lvlm_guard.errors import InputError
from lvlm_guard.files import is_file
from lvlm_guard.testbed.collage.delta import Delta
from lvlm_guard.testbed.collage.training.course import Course, Lesson
from lvlm_guard.testbed.collage.training.exam import make_exam, take
from lvlm_guard.testbed.collage.training.projection import fit_projector
from lvlm_guard.testbed.collage.training.student import RANK, Student, gather
from lvlm_guard.testbed.collage.world.pictures import Pictures
from lvlm_guard.testbed.collage.world.splits import scene
from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.files import clear_failure, write_whole
from lvlm_guard.testbed.training.trainer import read_checkpoint

CHECKPOINT = "training.pt"
LOG = "training.jsonl"
WARMUP = 10
COOLDOWN = 0.2
"""The rate rises over WARMUP steps, stays, and falls to zero over this share of them at the end."""

_RATES = (1.0, 0.2, 1.0)
"""What the rate counts for the low-rank changes, the projector and the table of places."""
_FIT_FROM = 10_000_000
"""Number of the first scene that the projector is fitted on; none of them is shown in a step."""
_FIT_BATCH = 20


@dataclass(frozen=True)
class Plan:
    """A whole training. A checkpoint is resumed with the plan it was begun with, or not at all.

    Args:
        steps: Steps in all.
        batch: Pictures of a step.
        questions: Questions about each, besides a caption.
        rank: Rank of the low-rank changes.
        rate: Learning rate of the low-rank changes.
        seed: Of scenes, questions and first factors.
        fitted: Scenes that the projector is fitted on.
        lending: Steps until the image tokens are no longer partly lent; see `Course`.
        blind_every: Every how many steps the language model is held to what it says without a picture.
        blind: What the distance from that counts.
        exam_every: Every how many steps it is measured on scenes that are not shown; 0 never.
        exam: Twins that it is measured on.
        save_every: Every how many steps a checkpoint is written.
        dtype: "bfloat16" or "float32", what forward and backward compute in.
    """

    steps: int = 440
    batch: int = 4
    questions: int = 12
    rank: int = RANK
    rate: float = 1e-3
    seed: int = 0
    fitted: int = 600
    lending: int = 80
    blind_every: int = 8
    blind: float = 1.0
    exam_every: int = 40
    exam: int = 8
    save_every: int = 20
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with.

        Raises:
            InputError: A number is too small, or the dtype is another.
        """
        for name in ("steps", "batch", "questions", "rank", "fitted", "blind_every", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.dtype not in ("bfloat16", "float32"):
            raise InputError(f"dtype must be bfloat16 or float32, got {self.dtype!r}.")


def teach(model: Any, processor: Any, pictures: Pictures, plan: Plan, folder: Path) -> tuple[Delta, dict[str, Any]]:
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
    words = model.model.language_model.embed_tokens.weight.detach().float().clone()
    course = Course(
        model.model.vision_tower,
        processor,
        pictures,
        words,
        batch=plan.batch,
        seed=plan.seed,
        questions=plan.questions,
        lending=plan.lending,
    )
    student = Student(model, plan.rank, getattr(torch, plan.dtype), plan.seed)
    optimizer = torch.optim.AdamW(_groups(student, plan), betas=(0.9, 0.95), weight_decay=0.0)
    log = _Log(folder / LOG)
    start = _restore(student, optimizer, plan, folder)
    if start is None:
        log({"step": 0, "fitted": round(_fit(student, course, plan), 4)})
        start = 0
        _save(student, optimizer, start, plan, folder)
    exam = make_exam(course, "calibration", plan.exam, plan.seed) if plan.exam_every else None
    figures: dict[str, Any] = {}
    for step in tqdm(range(start, plan.steps), initial=start, total=plan.steps, desc="seeing", mininterval=5):
        log({"step": step + 1, **_step(student, optimizer, course.lesson(step), step, plan)})
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            _save(student, optimizer, step + 1, plan, folder)
        if exam is not None and ((step + 1) % plan.exam_every == 0 or step + 1 == plan.steps):
            figures = take(student, processor, exam)
            log({"step": step + 1, **figures})
    return student.delta(), figures


def rate_at(step: int, steps: int) -> float:
    """Return the share of the full rate that a step takes, between 0 and 1."""
    return min((step + 1) / WARMUP, 1.0, (steps - step) / max(1, round(steps * COOLDOWN)))


def _groups(student: Student, plan: Plan) -> list[dict[str, Any]]:
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


def _fit(student: Student, course: Course, plan: Plan) -> float:
    """Set the projector to the closed form; return the share of the variance that it explains."""
    features: list[Tensor] = []
    targets: list[Tensor] = []
    for first in tqdm(range(0, plan.fitted, _FIT_BATCH), desc="first projector", mininterval=5):
        numbers = range(first, min(first + _FIT_BATCH, plan.fitted))
        scenes = [scene("train", _FIT_FROM + number, plan.seed) for number in numbers]
        features.append(course.features(scenes).flatten(0, 1))
        targets += [course.words(one) for one in scenes]
    return fit_projector(student.projector, torch.cat(features), torch.cat(targets))


def _step(
    student: Student, optimizer: torch.optim.Optimizer, lesson: Lesson, step: int, plan: Plan
) -> dict[str, float]:
    started = time.monotonic()
    for group in optimizer.param_groups:
        group["lr"] = group["full"] * rate_at(step, plan.steps)
    optimizer.zero_grad(set_to_none=True)
    learnt, targets, weights = gather(lesson.rows)
    hidden = student.hidden(lesson.rows, lesson.features, lesson.lent, lesson.share)
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


def _hold(student: Student, lesson: Lesson, plan: Plan) -> float:
    """Add the gradient of the distance from what the language model says without a picture; return the distance."""
    written = lesson.blind.blocks >= 0
    before = student.logits(student.untaught(lesson.blind)[written]).log_softmax(-1)
    now = student.logits(student.hidden(lesson.blind, None)[written]).log_softmax(-1)
    distance = kl_div(now, before, log_target=True, reduction="batchmean")
    (plan.blind * distance).backward()
    return round(distance.item(), 4)


class _Log:
    """Appends figures to a file, one line for each step."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, figures: dict[str, Any]) -> None:
        with clear_failure(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


def _save(student: Student, optimizer: torch.optim.Optimizer, step: int, plan: Plan, folder: Path) -> None:
    taught = {name: weight.detach() for name, weight in student.taught().items()}
    buffer = BytesIO()
    torch.save({"step": step, "plan": asdict(plan), "taught": taught, "optimizer": optimizer.state_dict()}, buffer)
    write_whole(folder / CHECKPOINT, buffer.getbuffer())


def _restore(student: Student, optimizer: torch.optim.Optimizer, plan: Plan, folder: Path) -> int | None:
    """Go on from the checkpoint in a folder; return its step, or None where there is none."""
    path = folder / CHECKPOINT
    if not is_file(path):
        return None
    content = read_checkpoint(path)
    if content.get("plan") != asdict(plan):
        raise TestbedError(
            f"{path} was begun with other settings than these. Give the settings it was begun with, or delete it."
        )
    with torch.no_grad():
        for name, weight in student.taught().items():
            weight.copy_(content["taught"][name])
    optimizer.load_state_dict(content["optimizer"])
    return int(content["step"])
