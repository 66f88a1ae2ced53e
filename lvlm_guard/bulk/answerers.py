"""What answers a unit: a guarded model, loaded where it works."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lvlm_guard import loading
from lvlm_guard.bulk.pools import Answerer
from lvlm_guard.bulk.units import BulkUnit
from lvlm_guard.errors import InputError
from lvlm_guard.fitting import check_chat_template
from lvlm_guard.guard import Guard
from lvlm_guard.host.stack import Stack
from lvlm_guard.loading import Placement
from lvlm_guard.request.picture_loading import read_picture
from lvlm_guard.request.picture_sources import decode


@dataclass(frozen=True)
class GuardSource:
    """Loads a model and guards it.

    Args:
        model: As `lvlm_guard.loading.load` takes it.
        device: As above; without one, workers take turns with the GPUs of the machine.
        dtype: As above.
        placement: As above.
        stack: A name, several joined by a plus, or a file.
        allow: Functions that the stack may name.
        described: What the stack was when the job began; a file that has changed since is refused.
        executor: Of the guard.
        settings: Of generate.
    """

    model: str
    device: str | None
    dtype: str
    placement: Placement
    stack: str
    allow: tuple[str, ...]
    described: Mapping[str, Any]
    executor: Any
    settings: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """Return what decides the answers, as plain values."""
        bits = {} if self.placement.quantization is None else {"quantization": self.placement.quantization}
        return {"model": self.model, "dtype": self.dtype, **bits, **self.described, **self.settings}

    def build(self, worker: int, workers: int) -> Answerer:
        """Load the model, and return what answers with it."""
        strategies = Stack.of(self.stack, allow=self.allow)
        if strategies.to_dict() != self.described:
            raise InputError(
                f"The stack {self.stack} has changed since the job began. Begin it again in another folder."
            )
        share_cores(workers)
        model, processor = self._load(worker, workers)
        check_chat_template(processor)
        return GuardAnswerer(Guard(model, processor, strategies, executor=self.executor), self.settings)

    def _load(self, worker: int, workers: int) -> tuple[Any, Any]:
        device = choose_device(self.device, worker, workers) if self.placement.is_plain else self.device
        return loading.load(self.model, device, self.dtype, self.placement)


@dataclass(frozen=True)
class GuardAnswerer:
    """Answers with a guard: a picture is read once, and its questions are one batch.

    Args:
        guard: The model and its stack.
        settings: Of generate.
    """

    guard: Guard
    settings: Mapping[str, Any]

    def __call__(self, unit: BulkUnit) -> list[str]:
        """Return the answers to the questions of a unit."""
        picture = read_unit_picture(unit)
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
            for question in unit.questions
        ]
        answers: list[str] = self.guard.chat(conversations, **self.settings)
        return answers


def read_unit_picture(unit: BulkUnit) -> Image.Image:
    """Return the picture of a unit as PIL RGB.

    Raises:
        InputError: It cannot be read.
    """
    if isinstance(unit.image, bytes):
        return decode(unit.image, f"The picture of {unit.id!r}")
    return read_picture(unit.image)


def share_cores(workers: int) -> None:
    """Let each of several workers use its share of the cores; `OMP_NUM_THREADS` decides where it is set."""
    import torch  # noqa: PLC0415 - slow to import

    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // workers, 1))


def choose_device(device: str | None, worker: int, workers: int) -> str | None:
    """Return the device of a worker: the named one, or the GPUs of the machine in turn."""
    import torch  # noqa: PLC0415 - slow to import

    count = torch.cuda.device_count()
    return f"cuda:{worker % count}" if device is None and workers > 1 and count else device
