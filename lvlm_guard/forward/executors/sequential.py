"""A forward and a cache for main and for each branch: right on every model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from torch import Tensor

from lvlm_guard.forward import caches
from lvlm_guard.forward.executors.branch_run import BranchRun
from lvlm_guard.forward.executors.executor import Inputs, Run
from lvlm_guard.forward.executors.first_step import FirstStep
from lvlm_guard.forward.layouts import DecodeLayouts
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.forward.steps import Step, StepLogits, TokenHistory
from lvlm_guard.protocols import Cache
from lvlm_guard.strategy.branches import MAIN

PrepareLate = Callable[[Tensor], Mapping[Hashable, PreparedDecode]]
"""Prepares, from main's logits of the prefill, the branches that depend on it."""


class SequentialExecutor:
    """Runs main, then each branch; every prefill runs this way.

    Args:
        main: Main as generate prepared it.
        branches: Prepared branches by key.
        history: The generated tokens.
        layouts: The layouts of the prompts.
        prepare_late: Prepares the branches that are built from main's prefill.
        cached: Whether generate keeps a cache.
    """

    def __init__(
        self,
        main: PreparedDecode,
        branches: Mapping[Hashable, PreparedDecode],
        history: TokenHistory,
        layouts: DecodeLayouts,
        prepare_late: PrepareLate,
        *,
        cached: bool,
    ) -> None:
        self.branches: dict[Hashable, BranchRun] = {}
        self._main = main
        self._cache: Cache | None = None
        self._history = history
        self._layouts = layouts
        self._prepare_late = prepare_late
        self.cached = cached
        self._add(branches)

    def adopt(self, cache: Cache | None) -> None:
        """Take the cache of generate's first call as main's, and keep what it keeps in the branches'."""
        self._cache = cache
        self._keep_past(list(self.branches))

    def run(self, forward: Run, inputs: Inputs, step: Step) -> StepLogits:
        """Run one step: main's forward exactly as plain generate runs it, then each branch."""
        running = self._layouts.lay_out([MAIN], self._main_positions(step))
        with running.active():
            output = forward(**inputs)
        readouts = self._layouts.read(running, output.logits, step.keep)
        if step.is_prefill:
            self._add(self._prepare_late(output.logits))
        logits = {key: self._run_branch(forward, key, step) for key in self.branches}
        return StepLogits(output, output.logits, logits, readouts, forwards=1 + len(self.branches))

    def describe_first_step(self, inputs: Inputs, step: Step) -> FirstStep:
        """The first step after the prefill, with what each branch's own forward would get."""
        tokens = self._history.tokens
        prepared = {key: branch.prepare_next(tokens, step.new) for key, branch in self.branches.items()}
        holds_more = not self._history.is_in_step or not all(branch.is_in_step for branch in self.branches.values())
        return FirstStep(self._main, self._cache, self.branches, inputs, prepared, step, holds_more)

    def reorder(self, index: Tensor) -> None:
        """Follow a reordering of generate's rows in main's cache and every branch's."""
        if self._cache is not None:
            type(self._cache).reorder_cache(self._cache, index)  # type: ignore[call-arg, arg-type]  # the class's own
        for branch in self.branches.values():
            branch.reorder(index)

    def repeat(self, times: int) -> None:
        """Go on with every row of the branches repeated; `reorder` does the same to their caches."""
        for branch in self.branches.values():
            branch.repeat(times)

    def release(self) -> None:
        """Nothing to do: main's cache was never shared."""

    def _run_branch(self, forward: Run, key: Hashable, step: Step) -> Tensor:
        """Feed a branch the step's tokens; its raw logits at the kept positions."""
        branch = self.branches[key]
        from_start = step.is_prefill or not self.cached
        past = caches.length_of(branch.cache) if step.is_prefill else 0
        positions = branch.length + self._history.length - past if from_start else step.new
        with self._layouts.lay_out([key], positions).active():
            return branch.feed(forward, self._history.tokens, step.new, step.keep, first=step.is_prefill)

    def _main_positions(self, step: Step) -> int:
        """How many positions main's forward runs."""
        if step.is_prefill:
            return self._main.length + step.new - caches.length_of(self._cache)
        return self._main.input_ids.shape[1] + self._history.length if not self.cached else step.new

    def _add(self, branches: Mapping[Hashable, PreparedDecode]) -> None:
        for key, prepared in branches.items():
            self.branches[key] = BranchRun(prepared)
            self._layouts.add(key, prepared)
        self._keep_past(list(branches))

    def _keep_past(self, keys: list[Hashable]) -> None:
        if self._cache is not None:
            for key in keys:
                caches.record_past_like(self.branches[key].cache, self._cache)
