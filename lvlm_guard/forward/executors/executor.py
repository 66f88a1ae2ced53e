"""What an executor is: it runs main and its branches for one forward call of generate."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from lvlm_guard.forward.history import Step
from lvlm_guard.strategy.forward import Forward

ExecutorName: TypeAlias = Literal["auto", "batched", "sequential"]
Run: TypeAlias = Callable[..., Any]
"""The module's own forward."""
Inputs: TypeAlias = dict[str, Any]
"""Keyword arguments of a forward, as generate passes them."""


@dataclass(frozen=True)
class StepLogits:
    """What an executor returns.

    Args:
        output: Main's output, as its own forward would have returned it.
        main: Raw logits of main `[rows, positions, vocab]`, the kept positions last.
        branches: Raw logits of each branch, kept positions last.
        readouts: Logits of inner layers of main `[rows, kept, vocab]`, by (layer, whether normed).
        forwards: Forwards that ran.
    """

    output: ModelOutput
    main: Tensor
    branches: Mapping[Hashable, Tensor]
    readouts: Mapping[tuple[int, bool], Tensor]
    forwards: int

    def as_forward(self, step: Step) -> Forward:
        """The kept positions, as strategies see them, on main's device."""
        keep = min(step.keep, self.main.shape[1])
        branches = {key: logits[:, -keep:].to(self.main.device) for key, logits in self.branches.items()}
        return Forward(self.main[:, -keep:], branches, step.first_position, readouts=self.readouts)

    def answer(self, combined: Tensor | None) -> ModelOutput:
        """Main's output with the combined logits in place of its own at the kept positions."""
        if combined is not None:
            before = self.main[:, : -combined.shape[1]]
            self.output["logits"] = torch.cat([before.float(), combined], dim=1) if before.shape[1] else combined
        return self.output


class Executor(Protocol):
    """Runs main and its branches, step by step."""

    def run(self, forward: Run, inputs: Inputs, step: Step) -> StepLogits:
        """Run one step; `inputs` are those of main's forward."""
        ...

    def reorder(self, index: Tensor) -> None:
        """Follow a reordering of generate's rows in every cache."""
        ...

    def release(self) -> None:
        """Leave main's cache as plain generate would have."""
        ...
