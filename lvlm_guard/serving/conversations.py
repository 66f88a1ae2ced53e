"""Requests as jobs: texts checked, pictures decoded, a stack chosen from those that are offered."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lvlm_guard.errors import nearest, shorten
from lvlm_guard.serving.api_errors import ApiError
from lvlm_guard.serving.chat_request import ChatMessage, ChatRequest, ImagePart
from lvlm_guard.serving.engine import ChatJob, Engine, SampledChoice
from lvlm_guard.serving.pictures import PictureGate
from lvlm_guard.serving.settings import ServingLimits
from lvlm_guard.serving.special_texts import SpecialTexts

JOINT = ":"
"""Between the name of the model and that of a stack, for clients that can choose nothing but a model."""


@dataclass(frozen=True)
class RequestReader:
    """Turns requests into jobs.

    Args:
        model: The name that clients call the model by.
        engine: What answers.
        default_stack: Of requests that do not name one.
        limits: What a request may hold.
        special: Finds texts that are no text to the tokenizer.
        fetch: Fetches URLs; None where that is off.
    """

    model: str
    engine: Engine
    default_stack: str
    limits: ServingLimits
    special: SpecialTexts
    fetch: Callable[[str], bytes] | None = None

    @property
    def names(self) -> list[str]:
        """What requests may call the model: by itself with the default stack, and with each stack."""
        return [self.model, *(f"{self.model}{JOINT}{stack}" for stack in self.engine.stacks)]

    def read(self, request: ChatRequest, id: str, client: str, arrived: float) -> ChatJob:  # noqa: A002 - the field's name
        """Return a request as a job; blocks while pictures are fetched and decoded.

        Raises:
            ApiError: It names no model or stack of this server, holds too much, or something that cannot be read.
        """
        stack = self.choose_stack(request)
        self._count_parts(request.messages)
        gate = PictureGate(self.fetch, self.limits.max_pixels, self.limits.max_pictures)
        messages = [self._read_message(message, index, gate) for index, message in enumerate(request.messages)]
        has_pictures = gate.pictures < self.limits.max_pictures
        job = ChatJob(
            id, client, messages, has_pictures, stack, self._choose_sampling(request), self._limit_tokens(request),
            request.stops, request.n or 1, bool(request.guard and request.guard.report),
            arrived + self.limits.answer_seconds,
        )  # fmt: skip
        self.engine.check(job)
        return job

    def choose_stack(self, request: ChatRequest) -> str:
        """Return the stack that a request names: in `guard`, behind the name of the model, or not at all.

        Raises:
            ApiError: Another model, or a stack that is not offered; the message names those that are.
        """
        model, joint, behind = request.model.partition(JOINT)
        if request.model == self.model:
            model, joint, behind = request.model, "", ""
        if model != self.model:
            raise ApiError(
                404,
                f"The model {shorten(request.model, 80)!r} does not exist here. This server has {self.model!r}.",
                "model_not_found",
                param="model",
            )
        named = request.guard.stack if request.guard is not None else None
        stack = named if named is not None else behind if joint else self.default_stack
        if stack not in self.engine.stacks:
            raise ApiError(
                400,
                f"No stack is called {shorten(stack, 80)!r} here.{nearest(stack, self.engine.stacks)}",
                "unknown_stack",
                param="guard.stack" if named is not None else "model",
            )
        return stack

    def _count_parts(self, messages: list[ChatMessage]) -> None:
        parts = sum(max(len(message.parts), 1) for message in messages)
        if parts > self.limits.max_parts:
            raise ApiError(
                400,
                f"The messages have {parts} parts; this server takes {self.limits.max_parts}.",
                "too_many_parts",
                param="messages",
            )
        length = sum(
            len(part.text) for message in messages for part in message.parts if not isinstance(part, ImagePart)
        )
        if length > self.limits.max_text:
            raise ApiError(
                400,
                f"The messages have {length} characters; this server takes {self.limits.max_text}.",
                "context_length_exceeded",
                param="messages",
            )

    def _read_message(self, message: ChatMessage, index: int, gate: PictureGate) -> dict[str, Any]:
        """Return a message for a chat template; texts are checked one by one and joined, as some templates join them."""
        items: list[dict[str, Any]] = []
        texts: list[str] = []
        for number, part in enumerate(message.parts):
            param = f"messages[{index}].content[{number}]"
            if isinstance(part, ImagePart):
                items.append({"type": "image", "image": gate.read(part.image_url.url, param)})
            else:
                texts.append(part.text)
                items.append({"type": "text", "text": part.text})
        self.special.check("".join(texts), f"messages[{index}].content")
        role = "system" if message.role == "developer" else message.role
        return {"role": role, "content": items}

    def _choose_sampling(self, request: ChatRequest) -> SampledChoice | None:
        temperature = self.engine.default_temperature if request.temperature is None else request.temperature
        if temperature == 0:
            return None
        top_p = self.engine.default_top_p if request.top_p is None else request.top_p
        seed = secrets.randbits(62) if request.seed is None else request.seed
        return SampledChoice(temperature, top_p, seed % 2**63)

    def _limit_tokens(self, request: ChatRequest) -> int | None:
        limit = request.token_limit
        if limit is not None and limit > self.limits.max_tokens:
            raise ApiError(
                400,
                f"An answer may have {self.limits.max_tokens} tokens here, got {limit}.",
                "invalid_value",
                param="max_tokens",
            )
        return limit
