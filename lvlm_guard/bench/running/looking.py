"""One batch of a suite on looks: questions about one picture go on from its prefix, everything else runs whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lvlm_guard.bench.items import Item
from lvlm_guard.call.report import Report
from lvlm_guard.errors import InputError, Refused
from lvlm_guard.guard import Guard
from lvlm_guard.outputs import sequences


@dataclass(frozen=True, eq=False)
class GeneratedRows:
    """What one call generated.

    Args:
        rows: Numbers of the rows in their batch.
        tokens: Generated tokens `[rows, tokens]`, on the CPU.
        recorder: What noted the margins of the rows, or None.
        report: The report of the call.
        seconds: How long the call took.
    """

    rows: Sequence[int]
    tokens: Tensor
    recorder: Any
    report: Report
    seconds: float


@dataclass(frozen=True, eq=False)
class BatchGenerator:
    """Generates the answers of one batch.

    Args:
        guard: The guard of the system.
        settings: Settings of generate.
        make_recorder: Makes what notes the margins of one call, or returns None.
    """

    guard: Guard
    settings: Mapping[str, Any]
    make_recorder: Callable[[], Any]

    def generate(
        self, items: Sequence[Item], prompts: Sequence[Any], *, looks: bool
    ) -> tuple[list[GeneratedRows], float]:
        """Return what was generated, one entry for each call, and how many seconds the calls took.

        Args:
            items: The items of the batch.
            prompts: Their conversations.
            looks: Whether questions about one picture go on from a look at it.
        """
        if looks:
            parts = [self._generate_group(rows, items, prompts) for rows in _group_rows(items)]
        else:
            parts = [self._generate_whole(list(range(len(items))), prompts)]
        return parts, sum(part.seconds for part in parts)

    def _generate_group(self, rows: list[int], items: Sequence[Item], prompts: Sequence[Any]) -> GeneratedRows:
        if len({items[row].image for row in rows}) == 1 and items[rows[0]].image is not None and len(rows) > 1:
            try:
                return self._generate_on_look(rows, items, prompts)
            except (Refused, InputError):
                pass  # no look holds this system on this model; whole prompts are answered alike, or refused too
        return self._generate_whole(rows, prompts)

    def _generate_on_look(self, rows: list[int], items: Sequence[Item], prompts: Sequence[Any]) -> GeneratedRows:
        picture = next(item["image"] for item in prompts[rows[0]][0]["content"] if item["type"] == "image")
        with self.guard.looking(picture) as look:
            inputs = look.inputs([items[row].prompt for row in rows])
            return self._finish(rows, inputs, look.generate)

    def _generate_whole(self, rows: list[int], prompts: Sequence[Any]) -> GeneratedRows:
        inputs = self.guard.inputs(messages=[prompts[row] for row in rows])
        return self._finish(rows, inputs, self.guard.generate)

    def _finish(self, rows: list[int], inputs: Mapping[str, Any], generate: Callable[..., Any]) -> GeneratedRows:
        recorder = self.make_recorder()
        processors = {} if recorder is None else {"logits_processor": [recorder]}
        started = time.perf_counter()
        output = generate(**inputs, **self.settings, **processors)
        tokens = sequences(output)[:, self.guard.report.answer_start :].cpu()
        return GeneratedRows(rows, tokens, recorder, self.guard.report, time.perf_counter() - started)


def _group_rows(items: Sequence[Item]) -> list[list[int]]:
    """Return the rows of each picture that several items are about, then all others together."""
    by_picture: dict[str | None, list[int]] = {}
    for row, item in enumerate(items):
        by_picture.setdefault(item.image, []).append(row)
    looks = [rows for picture, rows in by_picture.items() if picture is not None and len(rows) > 1]
    remaining_rows = [row for row in range(len(items)) if not any(row in rows for rows in looks)]
    return [*looks, *([remaining_rows] if remaining_rows else [])]
