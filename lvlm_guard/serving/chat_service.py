"""`POST /v1/chat/completions`, from the first byte of a request to the last of its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lvlm_guard.serving.admission import Admission, KeyRing
from lvlm_guard.serving.api_errors import ApiError
from lvlm_guard.serving.chat_answers import AnswerWriter
from lvlm_guard.serving.chat_request import ChatRequest, read_chat_request
from lvlm_guard.serving.conversations import RequestReader
from lvlm_guard.serving.engine import ChatJob, JobEvent
from lvlm_guard.serving.handled_request import DISCONNECTED, HandledRequest
from lvlm_guard.serving.http_bodies import ClientGone, read_body, run_while_connected
from lvlm_guard.serving.metrics import ServingMetrics
from lvlm_guard.serving.settings import ServingLimits

READERS = 4
READERS_THAT_FETCH = 16
"""Threads that decode pictures: few, for each holds one in memory; more where they wait for other servers."""


@dataclass
class ChatService:
    """Handles requests for answers.

    Args:
        reader: Turns requests into jobs, and knows the engine.
        limits: What is allowed.
        keys: Who may ask.
    """

    reader: RequestReader
    limits: ServingLimits
    keys: KeyRing = field(default_factory=KeyRing)

    def __post_init__(self) -> None:
        engine = self.reader.engine
        self.admission = Admission(self.limits.queue, lambda: engine.seconds_to_wait)
        self.metrics = ServingMetrics(lambda: len(self.admission), lambda: engine.waiting)
        threads = READERS if self.reader.fetch is None else READERS_THAT_FETCH
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="lvlm-guard-reader")

    async def complete(self, request: Request) -> Response:
        """Answer one request; the answer has the request's id in a header, errors too."""
        handled = HandledRequest(self.metrics)
        try:
            response = await self._answer(request, handled)
        except ApiError as error:
            handled.note_error(error)
            response = write_error(error)
        except ClientGone:
            response = Response(status_code=DISCONNECTED)
        finally:
            if not handled.streams:
                handled.close()
        response.headers["x-request-id"] = handled.id
        return response

    async def _answer(self, request: Request, handled: HandledRequest) -> Response:
        handled.client = self.identify(request)
        handled.places.enter_context(self.admission.enter(handled.client))
        body = await read_body(request, self.limits)
        loop = asyncio.get_running_loop()
        chat, job = await loop.run_in_executor(self._threads, self._read, body, handled)
        events = handled.follow(self.reader.engine.answer(job))
        shows_usage = chat.stream_options is not None and bool(chat.stream_options.include_usage)
        writer = AnswerWriter(handled.id, chat.model, int(time.time()), job.stack, chat.guard is not None, shows_usage)
        if not chat.stream:
            answer, _ = await run_while_connected(request, writer.write_whole(events))
            return JSONResponse(answer, headers=NOT_KEPT)
        first = await run_while_connected(request, _begin(events))
        handled.streams = True
        return StreamedAnswer(writer, _resume(first, events), handled, self.limits.answer_seconds)

    def identify(self, request: Request) -> str:
        """Return who asks.

        Raises:
            ApiError: Nobody who may.
        """
        address = request.client.host if request.client is not None else "unknown"
        return self.keys.identify(request.headers.get("authorization"), address)

    def _read(self, body: bytes, handled: HandledRequest) -> tuple[ChatRequest, ChatJob]:
        chat = read_chat_request(body)
        handled.stack = self.reader.choose_stack(chat)
        job = self.reader.read(chat, handled.id, handled.client, handled.arrived)
        items = [item for message in job.messages for item in message["content"]]
        handled.pictures = sum(item["type"] == "image" for item in items)
        return chat, job


NOT_KEPT = {"Cache-Control": "no-store"}


class StreamedAnswer(StreamingResponse):
    """Server-sent events; the request is given up where the client goes away.

    Args:
        writer: Writes the answer.
        events: Of the answer.
        handled: The request, closed when this is over.
        seconds: After which a client that does not read what is sent is left.
    """

    def __init__(
        self, writer: AnswerWriter, events: AsyncGenerator[JobEvent, None], handled: HandledRequest, seconds: float
    ) -> None:
        super().__init__(
            writer.write_chunks(events),
            media_type="text/event-stream",
            headers={**NOT_KEPT, "X-Accel-Buffering": "no"},
        )
        self._events = events
        self._handled = handled
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await asyncio.wait_for(super().__call__(scope, receive, send), self._seconds)
        except asyncio.TimeoutError:
            self._handled.note_error(ApiError(504, "The client did not read its answer in time.", "slow_reader"))
        finally:
            await self._events.aclose()
            self._handled.close()


def write_error(error: ApiError) -> JSONResponse:
    """Return an error as an answer."""
    return JSONResponse(error.to_dict(), error.status, headers={**NOT_KEPT, **error.headers})


async def _begin(events: AsyncGenerator[JobEvent, None]) -> JobEvent:
    """Wait for the first event: until then an error is an answer of its own status, not a part of a stream."""
    return await anext(events)


async def _resume(first: JobEvent, events: AsyncGenerator[JobEvent, None]) -> AsyncGenerator[JobEvent, None]:
    """Yield an event that was waited for, and those that follow."""
    try:
        yield first
        async for event in events:
            yield event
    finally:
        await events.aclose()
