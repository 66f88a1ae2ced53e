"""The engine round a model of transformers: a worker thread that owns it, and guarded batches of waiting requests."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Hashable, Mapping
from typing import Any

from lvlm_guard.guard import Guard
from lvlm_guard.host.plugins import is_marked
from lvlm_guard.host.stack import Stack
from lvlm_guard.serving.answer_rows import OpenJob
from lvlm_guard.serving.api_errors import ApiError, describe_lateness, describe_stopping
from lvlm_guard.serving.engine import ChatJob, Emit, JobEvent, follow_events
from lvlm_guard.serving.fair_queue import FairQueue
from lvlm_guard.serving.guarded_batch import BatchRunner
from lvlm_guard.serving.settings import ServingLimits
from lvlm_guard.serving.structured_logs import log_failure

CUTOFFS = {"min_p": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": 0}
"""Settings of a checkpoint that cut sampled tokens in ways that rows are not drawn by, with their neutral values."""


class HuggingFaceEngine:
    """Answers requests by `Guard.generate`; see `Engine` for what each method promises.

    Requests share a batch where they have the stack, and whether they sample and hold pictures, in common. One that asks for the
    guard's report runs alone, because a report counts all rows of its call, and so does one whose stack searches or revises,
    because such answers are final only as a whole.

    Args:
        guard: The model, its processor, and what is done with requests without a picture.
        stacks: The stacks that requests may choose, by name.
        limits: Rows of a batch, tokens of an answer, seconds.
    """

    def __init__(self, guard: Guard, stacks: Mapping[str, Stack], limits: ServingLimits) -> None:
        self._limits = limits
        self._guards = {name: guard.using(stack) for name, stack in stacks.items()}
        self._settings = read_generation_config(guard.model)
        self._queue = FairQueue(self._group, limits.gather_seconds)
        self._runner = BatchRunner(guard, self._guards, limits.max_tokens, int(self._settings.get("top_k") or 0))
        self._seconds = 0.0
        self._batch_started: float | None = None
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="lvlm-guard-worker", daemon=True)
        self._thread.start()

    @property
    def stacks(self) -> Mapping[str, tuple[str, ...]]:
        """Names of stacks, with those of their strategies."""
        return {name: guard.stack.names for name, guard in self._guards.items()}

    @property
    def default_temperature(self) -> float:
        """The checkpoint's; 0 where it does not sample."""
        return float(self._settings.get("temperature") or 1.0) if self._settings.get("do_sample") else 0.0

    @property
    def default_top_p(self) -> float:
        """The checkpoint's; 1 where it says nothing."""
        top_p = self._settings.get("top_p")
        return 1.0 if top_p is None else float(top_p)

    @property
    def is_alive(self) -> bool:
        """Whether the worker takes requests; not where one batch has kept it for twice as long as any answer may take."""
        started = self._batch_started
        is_stuck = started is not None and time.monotonic() - started > 2 * self._limits.answer_seconds
        return self._thread.is_alive() and not self._is_stopping and not is_stuck

    @property
    def waiting(self) -> int:
        """Requests that wait for a batch."""
        return len(self._queue)

    @property
    def seconds_to_wait(self) -> float:
        """Batches that are waiting, times what the last ones took."""
        return self._seconds * (1 + len(self._queue) / self._limits.max_batch)

    def check(self, job: ChatJob) -> None:
        """Refuse sampling where this model and stack cannot draw rows apart from their batch."""
        if job.choices > self._limits.max_batch:
            raise ApiError(400, f"'n' may be {self._limits.max_batch} at most here.", "invalid_value", param="n")
        if job.sampling is None:
            return
        if self._hooks_of(job.stack) & {"search"}:
            raise ApiError(
                422,
                f"The stack {job.stack!r} searches, so it chooses the tokens itself: set temperature to 0.",
                "guard_refused",
            )
        cutoffs = [name for name, value in CUTOFFS.items() if self._settings.get(name) not in (None, value)]
        if cutoffs:
            raise ApiError(
                422,
                f"The generation config of this model sets {', '.join(cutoffs)}, which is not sampled by here: set temperature to 0.",
                "sampling_refused",
            )

    def answer(self, job: ChatJob) -> AsyncGenerator[JobEvent, None]:
        """Queue a request, and yield what the worker passes on."""

        def hand_over(emit: Emit) -> OpenJob:
            request = OpenJob(job, emit)
            if not self._queue.put(request):
                raise describe_stopping()
            return request

        return follow_events(job, hand_over)

    def stop(self) -> None:
        """Answer what waits, then end the worker; after `drain_seconds` it is left to die with the process."""
        self._is_stopping = True
        self._queue.close()
        self._thread.join(self._limits.drain_seconds)

    def _group(self, request: OpenJob) -> Hashable | None:
        job = request.job
        if job.wants_report or self._hooks_of(job.stack):
            return None
        return job.stack, job.sampling is not None, job.has_pictures

    def _hooks_of(self, stack: str) -> set[str]:
        """Return which hooks of a stack own the answer as a whole."""
        return {
            hook
            for hook in ("search", "finish")
            for strategy in self._guards[stack].stack
            if is_marked(getattr(strategy, hook, None))
        }

    def _work(self) -> None:
        while requests := self._queue.take(self._limits.max_batch):
            self._batch_started = started = time.monotonic()
            self._run(requests)
            self._batch_started = None
            seconds = time.monotonic() - started
            self._seconds = 0.8 * self._seconds + 0.2 * seconds if self._seconds else seconds

    def _run(self, requests: list[OpenJob]) -> None:
        """Answer requests in one batch; where that fails, each alone, so that the one at fault fails alone."""
        for request in requests:
            if request.is_late:
                request.fail(describe_lateness())
        waiting = [request for request in requests if not request.is_over]
        if not waiting:
            return
        stack = waiting[0].job.stack
        try:
            self._runner.run(waiting, streams=not self._hooks_of(stack))
        except Exception as error:  # noqa: BLE001 - models, processors and strategies are foreign code
            log_failure(error, stack=stack, rows=len(waiting))
            if len(waiting) == 1:
                waiting[0].fail(self._runner.explain(waiting[0], error))
                return
            for request in waiting:
                self._run([request])


def read_generation_config(model: Any) -> dict[str, Any]:
    """Return what a checkpoint's generation config sets apart from the defaults of transformers."""
    config = getattr(model, "generation_config", None)
    return {} if config is None else dict(config.to_diff_dict())
