"""One batch of a harness on looks: questions about the same pictures go on from a look at them, all others run whole."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lvlm_guard.call.report import Report
from lvlm_guard.errors import InputError, Refused
from lvlm_guard.guard import Guard
from lvlm_guard.harness.questions import HarnessQuestion


@dataclass(frozen=True, eq=False)
class AnsweredRows:
    """What one call generated.

    Args:
        rows: Numbers of the questions in their batch.
        inputs: Model inputs of the call.
        output: What generate returned.
        report: The report of the call.
        seconds: How long the call took.
    """

    rows: Sequence[int]
    inputs: Mapping[str, Any]
    output: Any
    report: Report
    seconds: float


def generate_batch(guard: Guard, batch: Sequence[HarnessQuestion], *, looks: bool) -> list[AnsweredRows]:
    """Return what a guard generates for a batch of one kind of settings, one entry for each call.

    Args:
        guard: The guard.
        batch: The questions.
        looks: Whether questions about the same pictures go on from a look.
    """
    groups = _group_rows(batch) if looks else [list(range(len(batch)))]
    return [_generate_group(guard, batch, rows) for rows in groups]


def _generate_group(guard: Guard, batch: Sequence[HarnessQuestion], rows: Sequence[int]) -> AnsweredRows:
    inputs = guard.inputs(messages=[batch[row].messages for row in rows])
    settings = batch[rows[0]].settings
    if len(rows) > 1 and len({_name_pictures(batch[row]) for row in rows}) == 1 and batch[rows[0]].has_picture:
        try:
            with guard.looking(guard.inputs(messages=batch[rows[0]].messages)) as look:
                started = time.perf_counter()
                output = look.generate(**inputs, **settings)
                return AnsweredRows(rows, inputs, output, guard.report, time.perf_counter() - started)
        except (Refused, InputError):
            pass  # no look holds this stack, model or wording; whole prompts are answered alike, or refused too
    started = time.perf_counter()
    output = guard.generate(**inputs, **settings)
    return AnsweredRows(rows, inputs, output, guard.report, time.perf_counter() - started)


def _group_rows(batch: Sequence[HarnessQuestion]) -> list[list[int]]:
    """Return the rows about the same pictures, several at least, then all others together."""
    by_pictures: dict[tuple[str, ...], list[int]] = {}
    for row, question in enumerate(batch):
        by_pictures.setdefault(_name_pictures(question), []).append(row)
    looks = [rows for names, rows in by_pictures.items() if names and len(rows) > 1]
    remaining_rows = [row for row in range(len(batch)) if not any(row in rows for rows in looks)]
    return [*looks, *([remaining_rows] if remaining_rows else [])]


def _name_pictures(question: HarnessQuestion) -> tuple[str, ...]:
    """Return a name for each picture of a question, equal for equal pictures."""
    return tuple(_name_picture(picture) for picture in question.list_pictures())


def _name_picture(picture: Any) -> str:
    if not isinstance(picture, Image.Image):
        return f"{type(picture).__name__} {id(picture)}"
    content = hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest()
    return f"{picture.mode} {picture.size} {content}"
