"""Which executor decodes, settled at the first decode step, when caches and inputs can be looked at."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_guard.errors import ModeRefused
from lvlm_guard.forward.executors.batch_obstacles import find_obstacle
from lvlm_guard.forward.executors.batched import BatchedExecutor
from lvlm_guard.forward.executors.executor import Executor, ExecutorName, Inputs, Run
from lvlm_guard.forward.executors.sequential import SequentialExecutor
from lvlm_guard.forward.layouts import DecodeLayouts
from lvlm_guard.forward.steps import Step


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
    forward: Run,
    layouts: DecodeLayouts,
    inputs: Inputs,
    step: Step,
    obstacle: str | None = None,
) -> Choice:
    """Choose one batch for main and branches where that is exact; `obstacle` is what is known to keep it from that.

    Raises:
        ModeRefused: The batched executor was asked for and would not be exact.
    """
    if not sequential.cached:
        return Choice(sequential, "sequential", "there is no cache (use_cache=False)")
    first = sequential.describe_first_step(inputs, step)
    obstacle = obstacle or find_obstacle(first, forward)
    if obstacle and name == "batched":
        raise ModeRefused(f"The batched executor would not be exact here: {obstacle}. Choose executor='auto'.")
    if obstacle:
        return Choice(sequential, "sequential", obstacle)
    return Choice(BatchedExecutor(first, layouts), "batched", "exact here" if name == "auto" else "asked for")
