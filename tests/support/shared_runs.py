"""Runs of the toy benchmark that several workers share, in other processes or in this one, where they can die."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from quick_run import Arithmetic, Letters, Toy
from torch import Tensor

from lvlm_guard.bench.running.shared_run import ModelSource
from lvlm_guard.bulk.pools import WorkerDeath, WorkerReady
from lvlm_guard.errors import InputError


class NoSampledSecond(Arithmetic):
    """Refuses to sample answers about the picture number 2."""

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int = 4,
        do_sample: bool = False,
        **settings: Any,
    ) -> Tensor:
        if do_sample and ord("2") in input_ids:
            raise InputError("This is not sampled.")
        return super().generate(input_ids, attention_mask, max_new_tokens, do_sample, **settings)


@dataclass(frozen=True)
class ToySource(ModelSource):
    """The model that answers by arithmetic."""

    name: str = "toy"
    kind: type[Arithmetic] = Arithmetic

    def load(self, worker: int = 0, workers: int = 1) -> tuple[Any, Any]:
        return self.kind(), Letters()


@dataclass(frozen=True)
class DeadlyToy(Toy):
    """A toy whose fourth picture kills the process that looks at it, once; not the one whose number the mark holds."""

    mark: Path | None = None

    def picture(self, data: Path | None, image: str) -> Image.Image:
        mark = self.mark
        if image == "p3" and mark is not None and mark.exists() and mark.read_text() != str(os.getpid()):
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().picture(data, image)


class LateFirst:
    """A pool in this process: of the units that its workers hold, the youngest is answered first; some workers die.

    Args:
        source: Makes what answers.
        size: How many workers.
        answer: Answers a unit.
        deaths: Units at which workers die, each as often as it stands there.
    """

    deaths: tuple[str, ...] = ()

    def __init__(self, source: Any, size: int, answer: Callable[[Any, Any], Any]) -> None:
        self.size, self._answer = size, answer
        self._answerer = source.build(0, size)
        self._begun: deque[int] = deque(range(size))
        self._held: list[tuple[int, Any]] = []
        self._left = list(self.deaths)

    def submit(self, worker: int, unit: Any) -> None:
        self._held.append((worker, unit))

    def wait(self) -> list[tuple[int, Any]]:
        if self._begun:
            return [(self._begun.popleft(), WorkerReady())]
        worker, unit = self._held.pop()
        if unit.id in self._left:
            self._left.remove(unit.id)
            return [(worker, WorkerDeath("it was ended"))]
        return [(worker, self._answer(self._answerer, unit))]

    def replace(self, worker: int) -> None:
        self._begun.append(worker)

    def close(self) -> None:
        pass
