"""Answers of stacks to calibration items, each paid once: a folder of bench runs, one for each stack and part of the items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.bench import files
from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.running import runner
from lvlm_guard.bench.running.manifest import RunPlan
from lvlm_guard.bench.running.systems import CONTROLS, System
from lvlm_guard.host.stack import Stack
from lvlm_guard.tuning.splits import Split

SYSTEM = "stack"
"""What the stack is called in its runs."""


@dataclass(frozen=True)
class StackReply:
    """What a stack answered.

    Args:
        answers: In the order of the items; none where it refused.
        costs: Of its batches.
        refusal: Why it could not answer; empty where it could.
    """

    answers: Sequence[AnsweredItem]
    costs: Sequence[Mapping[str, Any]]
    refusal: str = ""

    def join(self, more: StackReply) -> StackReply:
        """Return this reply and that to further items, whose batches get names that no batch of this one has."""
        costs = [{**cost, "batch": ("further", cost["batch"])} for cost in more.costs]
        return StackReply([*self.answers, *more.answers], [*self.costs, *costs], self.refusal or more.refusal)


@dataclass(frozen=True)
class TunedModel:
    """The model that is tuned, and how it is run.

    Args:
        model: The model.
        processor: Its processor, with a chat template.
        name: What manifests call it.
        batch: Most prompts of a call.
        looks: Whether questions about one picture go on from a look at it.
        data: Folder of the suites' files.
        seed: Of whatever is sampled.
    """

    model: Any
    processor: Any
    name: str
    batch: int = 32
    looks: bool = False
    data: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class AnswerCache:
    """Answers of stacks to parts of a split.

    Args:
        folder: Where they are kept.
        subject: The model.
    """

    folder: Path
    subject: TunedModel

    def answer(self, stack: Stack, part: Split, label: str) -> StackReply:
        """Return what a stack answers; what is in the folder is not generated again.

        Args:
            stack: The stack; an empty one is plain generate.
            part: The items.
            label: What this part of the items is called.
        """
        plan = RunPlan(
            {part.name: part.choice},
            (System(SYSTEM, stack),),
            CONTROLS,
            self.subject.data,
            batch=self.subject.batch,
            seed=self.subject.seed,
            looks=self.subject.looks,
        )
        folder = self.folder / _digest(stack) / label
        files.make_folder(folder.parent)
        record = runner.run(
            plan,
            self.subject.model,
            self.subject.processor,
            folder,
            model_id=self.subject.name,
            gathered=part.content,
            progress=False,
        )
        refusal = record.refusal(SYSTEM, part.name)
        if refusal is not None:
            return StackReply((), (), f"{refusal.error}: {refusal.reason}")
        return StackReply(record.read_answers(SYSTEM, part.name), record.costs(SYSTEM, part.name))


def _digest(stack: Stack) -> str:
    """Name a stack by its strategies and all of their parameters."""
    text = json.dumps(stack.to_dict()["stack"], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
