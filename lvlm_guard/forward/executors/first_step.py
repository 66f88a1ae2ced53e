"""The first step after the prefill, from which it is told whether main and its branches can go on as one batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lvlm_guard.forward import caches
from lvlm_guard.forward.executors.branch_run import BranchRun
from lvlm_guard.forward.executors.executor import Inputs
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.forward.steps import Step
from lvlm_guard.protocols import Cache


@dataclass(frozen=True, eq=False)
class FirstStep:
    """Caches and inputs of main and its branches, prefilled and in step; nothing has run of this step.

    Args:
        main: Main as generate prepared it.
        cache: Main's cache.
        branches: The branches by key.
        inputs: Arguments of main's forward.
        branch_inputs: Arguments that the model's own code prepares for the forward of each branch.
        step: What the step feeds.
        holds_more: Whether some cache holds positions that no id of its prompt stands for.
    """

    main: PreparedDecode
    cache: Cache | None
    branches: Mapping[Hashable, BranchRun]
    inputs: Inputs
    branch_inputs: Mapping[Hashable, Inputs]
    step: Step
    holds_more: bool

    @property
    def caches(self) -> list[Cache | None]:
        """Main's cache, then the branches'."""
        return [self.cache, *(branch.cache for branch in self.branches.values())]

    @property
    def rows(self) -> int:
        """Rows of main, and of every branch."""
        return int(self.inputs["input_ids"].shape[0])

    @property
    def main_mask(self) -> Tensor | None:
        """Attention mask of main's prompt `[rows, length]`, or None; under a static cache the forward gets another kind."""
        if caches.is_static(self.cache):
            return self.main.prompt_mask
        mask = self.inputs.get("attention_mask")
        return None if mask is None else mask[:, : self.main.length]

    @property
    def is_ragged(self) -> bool:
        """Whether prompts or caches differ in length."""
        prompts = {self.main.length, *(branch.length for branch in self.branches.values())}
        return len(prompts) > 1 or len({caches.length_of(cache) for cache in self.caches}) > 1
