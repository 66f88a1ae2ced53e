"""What an executor is: it runs main and its branches for one forward call of generate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from lvlm_guard.forward.steps import Step, StepLogits

ExecutorName: TypeAlias = Literal["auto", "batched", "sequential"]
"""How branches are decoded: in one batch with main, one after the other, or whichever fits."""

Run: TypeAlias = Callable[..., Any]
"""The module's own forward."""
Inputs: TypeAlias = dict[str, Any]
"""Keyword arguments of a forward, as generate passes them."""


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
