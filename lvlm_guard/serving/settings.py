"""What a server allows: how much a request may hold, how many wait, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_guard.errors import InputError, quote

COUNTS = (
    "max_batch", "queue", "max_tokens", "max_pictures", "max_pixels", "max_body", "max_text", "max_parts",
)  # fmt: skip


@dataclass(frozen=True)
class ServingLimits:
    """Limits of a server; a request beyond one of them is refused with a message that names it.

    Args:
        max_batch: Rows of one guarded batch, returned choices counted one by one.
        queue: Requests that are open at once: being read, waiting or being answered.
        max_tokens: Tokens of an answer, at most, and where the request does not say.
        max_pictures: Pictures of one request.
        max_pixels: Pixels of all pictures of one request together.
        max_body: Bytes of a request.
        max_text: Characters of all texts of one request.
        max_parts: Messages, and parts of their contents, of one request.
        head_seconds: In which the line and headers of a request have to arrive, from the first byte or the connection on.
        body_seconds: In which the rest of a request has to arrive.
        answer_seconds: From a request's arrival to the end of its answer.
        gather_seconds: That the first of several requests waits for others to share its batch.
        drain_seconds: That open requests get when the server is told to stop.

    Raises:
        InputError: A limit that is no positive number.
    """

    max_batch: int = 8
    queue: int = 64
    max_tokens: int = 512
    max_pictures: int = 8
    max_pixels: int = 16 * 2**20
    max_body: int = 20 * 2**20
    max_text: int = 200_000
    max_parts: int = 2_000
    head_seconds: float = 20.0
    body_seconds: float = 30.0
    answer_seconds: float = 300.0
    gather_seconds: float = 0.005
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in COUNTS:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"{name} is a whole number of at least 1, got {quote(getattr(self, name))}.")
        for name in ("head_seconds", "body_seconds", "answer_seconds", "drain_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is a number of seconds, got {quote(getattr(self, name))}.")
        if not 0 <= self.gather_seconds < self.answer_seconds:
            raise InputError(f"gather_seconds is between 0 and answer_seconds, got {quote(self.gather_seconds)}.")
