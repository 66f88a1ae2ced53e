"""Events on their way from the thread of an engine to the loop of a server."""

from __future__ import annotations

import asyncio
import time

from lvlm_guard.serving.answer_rows import LATE
from lvlm_guard.serving.api_errors import ApiError
from lvlm_guard.serving.engine import JobEvent


def pass_on(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[JobEvent | ApiError], event: JobEvent | ApiError
) -> None:
    """Pass an event from the worker to the loop; a loop that was closed has nobody who waits."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)


async def next_event(events: asyncio.Queue[JobEvent | ApiError], deadline: float) -> JobEvent:
    """Return the next event; the worker ends requests that are late, and this those that it cannot interrupt."""
    try:
        event = await asyncio.wait_for(events.get(), max(deadline - time.monotonic(), 0) + 1)
    except asyncio.TimeoutError:
        raise ApiError(504, LATE, "deadline_exceeded") from None
    if isinstance(event, ApiError):
        raise event
    return event
