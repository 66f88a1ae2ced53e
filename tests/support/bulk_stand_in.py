"""Answerers that need no model: what they say depends on the unit alone, and they can be told to fail or to die."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lvlm_guard.bulk.units import BulkUnit
from lvlm_guard.errors import InputError


@dataclass(frozen=True)
class StandIn:
    """Makes answerers that say a digest.

    Args:
        seconds: How long a unit takes.
        kills: Times that a unit kills the worker at it, by id.
        counts: A folder where the times are counted.
        fails: Ids at which the answerer raises.
        broken: Whether no worker can begin.
        dies_first: Whether every worker dies before it can begin.
    """

    seconds: float = 0.0
    kills: Mapping[str, int] = field(default_factory=dict)
    counts: Path = Path()
    fails: tuple[str, ...] = ()
    broken: bool = False
    dies_first: bool = False

    def build(self, worker: int, workers: int) -> StandIn:
        """Return itself, which is what answers too."""
        if self.broken:
            raise InputError("no such model")
        if self.dies_first:
            os.kill(os.getpid(), signal.SIGKILL)
        return self

    def __call__(self, unit: BulkUnit) -> list[str]:
        """Return a digest for each question."""
        time.sleep(self.seconds)
        if unit.id in self.kills and self._count(unit) <= self.kills[unit.id]:
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.id in self.fails:
            raise InputError("it cannot be answered")
        return [hashlib.sha256(f"{unit.id} {question}".encode()).hexdigest()[:8] for question in unit.questions]

    def _count(self, unit: BulkUnit) -> int:
        """Count a beginning of a unit, and return how many there were."""
        path = self.counts / unit.id
        with path.open("ab") as file:
            file.write(b".")
        return path.stat().st_size


def write_units(path: Path, count: int, corrupt: Sequence[int] = ()) -> Path:
    """Write units with two questions each; the lines at `corrupt` cannot be read."""
    lines = [
        "{torn" if number in corrupt else json.dumps({"id": f"u{number}", "image": "a.png", "questions": ["a", "b"]})
        for number in range(1, count + 1)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def read_files(folder: Path) -> tuple[bytes, bytes]:
    """Return the answers of a job, and what it left out."""
    return (folder / "answers.jsonl").read_bytes(), (folder / "rejected.jsonl").read_bytes()
