"""What is counted and logged of one request, from its arrival to its end."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field

from lvlm_guard.serving.api_errors import ApiError
from lvlm_guard.serving.engine import JobEnd, JobEvent, TextPiece
from lvlm_guard.serving.metrics import ServingMetrics
from lvlm_guard.serving.structured_logs import log_event

DISCONNECTED = 499
"""The status in logs and metrics of a request whose client went away, as nginx counts it."""


@dataclass
class HandledRequest:
    """One request while it is handled.

    Args:
        metrics: Counts it.
        places: What is given back at its end: its place among open requests.
    """

    metrics: ServingMetrics
    places: ExitStack = field(default_factory=ExitStack)
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    arrived: float = field(default_factory=time.monotonic)
    client: str = ""
    stack: str = ""
    streams: bool = False
    pictures: int = 0
    status: int = DISCONNECTED
    code: str | None = None
    first: float | None = None
    end: JobEnd | None = None
    _is_closed: bool = False

    async def follow(self, events: AsyncGenerator[JobEvent, None]) -> AsyncGenerator[JobEvent, None]:
        """Yield the events of an answer, and note how it goes."""
        async with aclosing(events):
            try:
                async for event in events:
                    if isinstance(event, TextPiece) and self.first is None:
                        self.first = time.monotonic() - self.arrived
                    if isinstance(event, JobEnd):
                        self.end, self.status = event, 200
                    yield event
            except ApiError as error:
                self.note_error(error)
                raise

    def note_error(self, error: ApiError) -> None:
        """Note the error that the client was told."""
        self.status, self.code = error.status, error.code

    def close(self) -> None:
        """Give the place back, count, and log; once."""
        if self._is_closed:
            return
        self._is_closed = True
        self.places.close()
        seconds = time.monotonic() - self.arrived
        self._count(seconds)
        log_event(
            "request",
            id=self.id, client=self.client, stack=self.stack, status=self.status, code=self.code, stream=self.streams,
            pictures=self.pictures, seconds=round(seconds, 4),
            first_seconds=None if self.first is None else round(self.first, 4),
            prompt_tokens=self.end and self.end.prompt_tokens, completion_tokens=self.end and self.end.completion_tokens,
            rows=self.end and self.end.rows,
        )  # fmt: skip

    def _count(self, seconds: float) -> None:
        self.metrics.requests.labels(self.stack, str(self.status)).inc()
        if self.status == DISCONNECTED:
            self.metrics.disconnected.inc()
        if self.first is not None:
            self.metrics.first.labels(self.stack).observe(self.first)
        if self.end is not None:
            self.metrics.seconds.labels(self.stack).observe(seconds)
            self.metrics.rows.observe(self.end.rows)
            self.metrics.tokens.labels("prompt").inc(self.end.prompt_tokens)
            self.metrics.tokens.labels("completion").inc(self.end.completion_tokens)
