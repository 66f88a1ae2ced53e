"""The scheduler that keeps groups in step where the engine schedules a step while the one before still runs."""

from __future__ import annotations

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from lvlm_guard.engines.vllm.scheduler import GangScheduler


class AsyncGangScheduler(GangScheduler, AsyncScheduler):
    """`GangScheduler` on top of the asynchronous scheduler: tokens that are still to come count as if they were there."""

    is_asynchronous = True
