"""How far a training is: its checkpoint, and the mean of the weights of the last ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from lvlm_guard.files import is_file
from lvlm_guard.testbed.collage.training.plan import SeeingPlan
from lvlm_guard.testbed.collage.training.student import Student
from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.files import write_whole
from lvlm_guard.testbed.training.precision import faster_dtype
from lvlm_guard.testbed.training.trainer import read_checkpoint

CHECKPOINT = "training.pt"


def settle_dtype(plan: SeeingPlan, checkpoint: Path) -> SeeingPlan:
    """Return the plan with a dtype: its own, else that of the checkpoint, else the faster one here.

    Raises:
        TestbedError: The checkpoint cannot be read.
    """
    if plan.dtype is not None:
        return plan
    noted = read_checkpoint(checkpoint).get("plan", {}) if is_file(checkpoint) else {}
    return replace(plan, dtype=noted.get("dtype") or faster_dtype())


class TrainingProgress:
    """The state of a training beside its student.

    Args:
        path: The checkpoint.
        student: What is taught.
        optimizer: Of its weights.
        plan: The settings; a checkpoint of others is refused.
    """

    def __init__(self, path: Path, student: Student, optimizer: torch.optim.Optimizer, plan: SeeingPlan) -> None:
        self._path, self._student, self._optimizer, self._plan = path, student, optimizer, plan
        self.step = 0
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def save(self, step: int) -> None:
        """Write a checkpoint after so many steps; the last ones are averaged.

        Raises:
            TestbedError: It could not be written; the one before is as it was.
        """
        self.step = step
        if step > self._plan.steps - self._plan.averaged * self._plan.save_every:
            self._add()
        content = {
            "step": step,
            "plan": asdict(self._plan),
            "taught": self._taught(),
            "optimizer": self._optimizer.state_dict(),
            "sums": self._sums,
            "count": self._count,
        }
        buffer = BytesIO()
        torch.save(content, buffer)
        write_whole(self._path, buffer.getbuffer())

    def restore(self) -> bool:
        """Go on from the checkpoint; return whether there is one.

        Raises:
            TestbedError: It is of another plan, or cannot be read.
        """
        if not is_file(self._path):
            return False
        content = read_checkpoint(self._path)
        if content.get("plan") != asdict(self._plan):
            raise TestbedError(
                f"{self._path} was begun with other settings than these. Give the settings it was begun with, or delete it."
            )
        self._student.put(content["taught"])
        self._optimizer.load_state_dict(content["optimizer"])
        self.step, self._sums, self._count = int(content["step"]), dict(content["sums"]), int(content["count"])
        return True

    def mean(self) -> Mapping[str, Tensor]:
        """Return the mean of what was taught, over the checkpoints that count."""
        return {name: total / self._count for name, total in self._sums.items()}

    def _add(self) -> None:
        for name, weight in self._taught().items():
            self._sums[name] = self._sums[name] + weight if self._count else weight.clone()
        self._count += 1

    def _taught(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self._student.taught().items()}
