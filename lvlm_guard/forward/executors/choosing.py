"""Which executor decodes, settled at the first decode step, when caches and inputs can be looked at."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_guard.errors import ModeRefused
from lvlm_guard.forward.executors.batched import BatchedExecutor, find_obstacle
from lvlm_guard.forward.executors.executor import Executor, ExecutorName, Inputs
from lvlm_guard.forward.executors.sequential import SequentialExecutor
from lvlm_guard.forward.layouts import DecodeLayouts
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.forward.steps import Step
from lvlm_guard.protocols import Cache


@dataclass(frozen=True)
class Choice:
    """The executor that decodes.

    Args:
        executor: The executor.
        name: `batched`, `sequential`, or `none` until one is chosen and where there is no branch.
        reason: Why this one, for the report.
    """

    executor: Executor
    name: str
    reason: str


def choose_by_name(sequential: SequentialExecutor, name: ExecutorName, *, branches: bool, cached: bool) -> Choice:
    """Settle what can be settled before the prefill.

    Raises:
        ModeRefused: The batched executor was asked for, and there is no cache.
    """
    if name == "batched" and not cached:
        raise ModeRefused("The batched executor needs a cache: drop use_cache=False or choose executor='sequential'.")
    if not branches:
        return Choice(sequential, "none", "no branch to run")
    if name == "sequential":
        return Choice(sequential, "sequential", "asked for")
    return Choice(sequential, "none", "")


def choose_executor(
    sequential: SequentialExecutor,
    name: ExecutorName,
    main: PreparedDecode,
    cache: Cache | None,
    layouts: DecodeLayouts,
    inputs: Inputs,
    step: Step,
) -> Choice:
    """Choose one batch for main and branches where that is exact.

    Raises:
        ModeRefused: The batched executor was asked for and would not be exact.
    """
    branches = sequential.branches
    for branch in branches.values():
        branch.synchronise(step.past)
    if main.settings.use_cache is False:
        obstacle: str | None = "there is no cache (use_cache=False)"
    else:
        obstacle = find_obstacle(main.module, [cache, *(branch.cache for branch in branches.values())], inputs)
    if obstacle and name == "batched":
        raise ModeRefused(f"The batched executor would not be exact here: {obstacle}. Choose executor='auto'.")
    if obstacle or cache is None:
        return Choice(sequential, "sequential", obstacle or "there is no cache")
    batched = BatchedExecutor(main, cache, branches, layouts, inputs)
    return Choice(batched, "batched", "exact here" if name == "auto" else "asked for")
