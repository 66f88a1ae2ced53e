"""Answers as OpenAI's clients read them: whole, and in chunks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.serving.api_errors import ApiError
from lvlm_guard.serving.engine import ChoiceEnd, JobEnd, JobEvent, TextPiece

LAST_EVENT = b"data: [DONE]\n\n"


@dataclass
class AnswerWriter:
    """Writes the answer to one request.

    Args:
        id: Of the request.
        model: As the request named it.
        created: Seconds since 1970.
        stack: The stack that answers.
        shows_guard: Whether the request had a `guard`, and so its answer has one.
        shows_usage: Whether a stream ends with a chunk of the usage.
    """

    id: str
    model: str
    created: int
    stack: str
    shows_guard: bool = False
    shows_usage: bool = False
    _texts: dict[int, str] = field(default_factory=dict)
    _reasons: dict[int, str] = field(default_factory=dict)

    async def write_whole(self, events: AsyncIterator[JobEvent]) -> tuple[dict[str, Any], JobEnd]:
        """Return the answer once all of it is there."""
        async for event in events:
            if isinstance(event, JobEnd):
                return self._describe_whole(event), event
            self._note(event)
        raise ApiError(500, "The answer ended without its end.", "failed")

    async def write_chunks(self, events: AsyncIterator[JobEvent]) -> AsyncIterator[bytes]:
        """Yield the answer as server-sent events; an error on the way is the last of them."""
        started: set[int] = set()
        try:
            async for event in events:
                for chunk in self._describe_event(event, started):
                    yield write_event(chunk)
        except ApiError as error:
            yield write_event(error.to_dict())
        yield LAST_EVENT

    def _describe_event(self, event: JobEvent, started: set[int]) -> list[dict[str, Any]]:
        if isinstance(event, JobEnd):
            return self._describe_end(event)
        chunks = []
        if event.choice not in started:
            started.add(event.choice)
            chunks.append(self._chunk(event.choice, {"role": "assistant", "content": ""}))
        if isinstance(event, TextPiece):
            chunks.append(self._chunk(event.choice, {"content": event.text}))
        else:
            chunks.append(self._chunk(event.choice, {}, event.reason))
        return chunks

    def _describe_end(self, end: JobEnd) -> list[dict[str, Any]]:
        """Return the chunk without choices that ends a stream where usage or the guard is to be shown."""
        extra = {**({"usage": _describe_usage(end)} if self.shows_usage else {}), **self._describe_guard(end)}
        return [{**self._head("chat.completion.chunk"), "choices": [], **extra}] if extra else []

    def _describe_whole(self, end: JobEnd) -> dict[str, Any]:
        choices = [
            {
                "index": choice,
                "message": {"role": "assistant", "content": self._texts.get(choice, ""), "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for choice, reason in sorted(self._reasons.items())
        ]
        usage = {"usage": _describe_usage(end)}
        return {**self._head("chat.completion"), "choices": choices, **usage, **self._describe_guard(end)}

    def _note(self, event: TextPiece | ChoiceEnd) -> None:
        if isinstance(event, TextPiece):
            self._texts[event.choice] = self._texts.get(event.choice, "") + event.text
        else:
            self._reasons[event.choice] = event.reason

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choice: int, delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        entry = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self.shows_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [entry], **usage}

    def _describe_guard(self, end: JobEnd) -> dict[str, Any]:
        if not self.shows_guard:
            return {}
        report = {} if end.report is None else {"report": end.report}
        return {"guard": {"stack": self.stack, **report}}


def write_event(value: Mapping[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _describe_usage(end: JobEnd) -> dict[str, int]:
    total = end.prompt_tokens + end.completion_tokens
    return {"prompt_tokens": end.prompt_tokens, "completion_tokens": end.completion_tokens, "total_tokens": total}
