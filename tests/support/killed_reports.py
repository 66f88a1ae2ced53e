"""Writes reports of answers in a process of its own, which ends by a signal on the way: `python killed_reports.py PICTURES OUT PLACE SIGNAL`.

PLACE is `diagnosing`, `figures` (a page is new, its JSON is not there) or `nowhere`.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from diagnosed_answers import make_diagnosis
from torch import nn

from lvlm_guard.cli.answer_reports import AnswerReports, QuestionedAnswer
from lvlm_guard.diagnosis import AnswerDiagnosis
from lvlm_guard.diagnosis.answer import diagnosing
from lvlm_guard.diagnosis.report.files import opened_folder
from lvlm_guard.host.stack import Stack

FATAL = 4
"""The answer on which the process ends, counted from 1."""


class Toy(nn.Module):
    """Enough of a model to be told from another."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.dtype = SimpleNamespace(to_dict=lambda: {"size": 1}), "torch.float32"
        self.weight = nn.Parameter(torch.zeros(2, 2))


@dataclass(frozen=True, eq=False)
class FatalDiagnosis(AnswerDiagnosis):
    """Ends the process where its figures are written."""

    name: str = "SIGKILL"

    def to_dict(self) -> dict[str, Any]:
        """End the process."""
        end(self.name)
        return super().to_dict()


def end(name: str) -> None:
    """End this process by a signal."""
    os.kill(os.getpid(), signal.Signals[name])


def write(pictures: Path, out: Path, place: str, name: str) -> int:
    """Write a report for each picture; return how many were there."""
    paths = sorted(pictures.iterdir())
    questions = [QuestionedAnswer((path,), f"what is {number} ?") for number, path in enumerate(paths, 1)]

    def diagnose(guard: Any, shown: Any, prompt: str, **settings: Any) -> AnswerDiagnosis:
        is_fatal = prompt == questions[FATAL - 1].prompt
        if is_fatal and place == "diagnosing":
            end(name)
        diagnosis = make_diagnosis(prompt=prompt)
        return FatalDiagnosis(**vars(diagnosis), name=name) if is_fatal and place == "figures" else diagnosis

    guard: Any = SimpleNamespace(model=Toy(), stack=Stack(), processor=None)
    with opened_folder(out), patch.object(diagnosing, "diagnose_answer", diagnose):
        return AnswerReports(guard, questions, out, {"cells": 6}).write(lambda diagnosis: None)


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell starts what runs in its background with SIGINT ignored
    print(write(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
