"""What a server asks of an engine, and how it follows a request there.

Whoever answers these calls, batches as it likes, and never lets requests meet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lvlm_guard.serving.api_errors import ApiError, describe_lateness

EndReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SampledChoice:
    """How the tokens of an answer are drawn.

    Args:
        temperature: Divides the logits; above 0.
        top_p: Share of the probability that the likeliest tokens must reach; 1 keeps all.
        seed: Of the first choice; the others count on from it.
    """

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, eq=False)
class ChatJob:
    """One request, checked, with its pictures decoded.

    Args:
        id: Of the request, for answers and logs.
        client: Who sent it; engines are fair between clients.
        messages: For a chat template, pictures as PIL in items `{"type": "image", "image": ...}`.
        has_pictures: Whether there are any.
        stack: A name of `Engine.stacks`.
        sampling: How tokens are drawn; None takes the best.
        max_tokens: Of each choice; None is as many as the server and the context allow.
        stops: Texts that end an answer, and are not part of it.
        choices: How many answers.
        wants_report: Whether the guard's report is wanted.
        deadline: On the clock of `time.monotonic`.
    """

    id: str
    client: str
    messages: list[dict[str, Any]]
    has_pictures: bool
    stack: str
    sampling: SampledChoice | None
    max_tokens: int | None
    stops: tuple[str, ...]
    choices: int
    wants_report: bool
    deadline: float


@dataclass(frozen=True)
class TextPiece:
    """The next characters of a choice."""

    choice: int
    text: str


@dataclass(frozen=True)
class ChoiceEnd:
    """The end of a choice, and why it ended."""

    choice: int
    reason: EndReason


@dataclass(frozen=True)
class JobEnd:
    """The end of a request, after all of its choices.

    Args:
        prompt_tokens: Tokens of the prompt, those of pictures included.
        completion_tokens: Tokens that were generated, all choices together, end tokens included.
        rows: Rows of the batch that it shared.
        report: What the guard did, where that was wanted.
    """

    prompt_tokens: int
    completion_tokens: int
    rows: int
    report: Mapping[str, Any] | None = None


JobEvent = TextPiece | ChoiceEnd | JobEnd

Emit = Callable[[JobEvent | ApiError], None]
"""Passes an event, or the error that ends a request, to whoever asked; may be called from any thread."""


class OpenRequest(Protocol):
    """A request that an engine's worker has."""

    def give_up(self) -> None:
        """Say that nobody waits for it any more."""


class Engine(Protocol):
    """Answers requests with one model."""

    @property
    def stacks(self) -> Mapping[str, tuple[str, ...]]:
        """The stacks that requests may choose, by name, with the names of their strategies."""

    @property
    def default_temperature(self) -> float:
        """Of requests that do not say: 0 takes the best token."""

    @property
    def default_top_p(self) -> float:
        """Of requests that do not say."""

    @property
    def is_alive(self) -> bool:
        """Whether requests would be answered."""

    @property
    def waiting(self) -> int:
        """Requests that wait for a batch."""

    @property
    def seconds_to_wait(self) -> float:
        """When a request that came now would be begun, in seconds, as far as that can be told."""

    def check(self, job: ChatJob) -> None:
        """Refuse what can be refused before it waits.

        Raises:
            ApiError: The request cannot be answered.
        """

    def answer(self, job: ChatJob) -> AsyncGenerator[JobEvent, None]:
        """Yield the pieces of an answer as they come, and a `JobEnd`; closing the generator gives the request up.

        Raises:
            ApiError: The request cannot be answered, or its time is over.
        """

    def stop(self) -> None:
        """Answer what waits, then end; returns when that is done."""


async def follow_events(job: ChatJob, hand_over: Callable[[Emit], OpenRequest]) -> AsyncGenerator[JobEvent, None]:
    """Hand a request to the worker of an engine, and yield what it passes on, to the `JobEnd`; closing gives the request up.

    Args:
        job: The request.
        hand_over: Gives it to the worker, which emits its events from a thread of its own.

    Raises:
        ApiError: The worker did not take it, ended it with an error, or was silent for a second after its deadline.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[JobEvent | ApiError] = asyncio.Queue()

    def emit(event: JobEvent | ApiError) -> None:
        if not loop.is_closed():  # a loop that was closed has nobody who waits
            loop.call_soon_threadsafe(events.put_nowait, event)

    request = hand_over(emit)
    try:
        while True:
            event = await _next_event(events, job.deadline)
            yield event
            if isinstance(event, JobEnd):
                return
    finally:
        request.give_up()


async def _next_event(events: asyncio.Queue[JobEvent | ApiError], deadline: float) -> JobEvent:
    """Return the next event; the worker ends requests that are late, and this those that it cannot interrupt."""
    try:
        event = await asyncio.wait_for(events.get(), max(deadline - time.monotonic(), 0) + 1)
    except asyncio.TimeoutError:
        raise describe_lateness() from None
    if isinstance(event, ApiError):
        raise event
    return event
