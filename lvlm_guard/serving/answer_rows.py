"""One request on its way, and each of its choices as a row of a batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from lvlm_guard.serving.answer_text import AnswerText, UnstableText
from lvlm_guard.serving.api_errors import ApiError, describe_failure, describe_lateness
from lvlm_guard.serving.engine import ChatJob, ChoiceEnd, Emit, EndReason, JobEnd, TextPiece

CHANGED = "The answer came out differently when it was repeated without its neighbours, so it is not sent. Ask again."


@dataclass(eq=False)
class OpenJob:
    """A request that waits or is being answered; written by the worker, given up by whoever asked.

    Args:
        job: The request.
        emit: Passes an event, or the error that ends the request, to whoever asked; may be called from any thread.
        rows: One for each choice.
    """

    job: ChatJob
    emit: Emit
    rows: list[AnswerRow] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for more of it."""
        return self._over.is_set()

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self.job.deadline

    def give_up(self) -> None:
        """Say that nobody waits for it any more."""
        self._over.set()

    def fail(self, error: BaseException) -> None:
        """End it with an error."""
        if not self.is_over:
            self._over.set()
            self.emit(describe_failure(error))

    def complete(self, end: JobEnd) -> None:
        """End it with an answer."""
        if not self.is_over:
            self._over.set()
            self.emit(end)


@dataclass(eq=False)
class AnswerRow:
    """One choice of a request.

    Args:
        request: The request that it belongs to.
        choice: Index of the choice.
        text: The text of its answer.
        ends: Token ids that end an answer.
        limit: Tokens at most.
    """

    request: OpenJob
    choice: int
    text: AnswerText
    ends: Collection[int]
    limit: int
    reason: EndReason | None = None
    _position: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it takes further tokens."""
        return self.reason is None and not self.request.is_over

    def restart(self) -> None:
        """Prepare for being generated once more: tokens that it already has must come again."""
        self._position = 0

    def accept(self, token: int) -> None:
        """Take the next token, pass on what is final of the text, and close the answer where it ends."""
        if self.request.is_late:
            self.request.fail(describe_lateness())
        if not self.is_open:
            return
        self._position += 1
        if self._position <= len(self.text.ids):
            if self.text.ids[self._position - 1] != token:
                self.request.fail(ApiError(500, CHANGED, "answer_changed"))
            return
        self._send(self.text.add(token))
        if token in self.ends or self.text.is_stopped:
            self.close("stop")
        elif len(self.text.ids) >= self.limit:
            self.close("length")

    def close(self, reason: EndReason) -> None:
        """End the answer."""
        try:
            self._send(self.text.close())
        except UnstableText:
            self.request.fail(ApiError(500, CHANGED, "answer_changed"))
            return
        self.reason = reason
        self.request.emit(ChoiceEnd(self.choice, reason))

    def _send(self, piece: str) -> None:
        if piece:
            self.request.emit(TextPiece(self.choice, piece))
