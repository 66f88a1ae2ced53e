"""The text of one answer while its tokens come: what of it is final, and where it stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

HALF_CHARACTER = "\ufffd"
"""What a tokenizer writes for a character whose other bytes are still to come."""


@dataclass
class AnswerText:
    """Turns tokens into text that never has to be taken back.

    White space at both ends is left out, as `Guard.chat` does, so the pieces together are its answer.

    Args:
        decode: Returns the text of token ids, without special tokens.
        stops: Texts that end the answer and are not part of it.
    """

    decode: Callable[[list[int]], str]
    stops: Sequence[str] = ()
    ids: list[int] = field(default_factory=list)
    is_stopped: bool = False
    sent: str = ""

    def add(self, token: int) -> str:
        """Take the next token, and return the characters that are final now."""
        self.ids.append(token)
        text = self._read()
        return "" if self.is_stopped else self._send(self._cut_open_end(text))

    def close(self) -> str:
        """Return the characters that were held back, at the end of the answer.

        Raises:
            UnstableText: Characters that were passed on are not those of the whole answer.
        """
        final = self._read().strip()
        if not final.startswith(self.sent):
            raise UnstableText
        return self._send(final)

    def _read(self) -> str:
        """Return the text so far, up to the first stop."""
        text = self.decode(self.ids)
        ends = [index for index in map(text.find, self.stops) if index >= 0]
        self.is_stopped = bool(ends)
        return text[: min(ends)] if ends else text

    def _cut_open_end(self, text: str) -> str:
        """Return the text without an end that further tokens may change: half a character, white space, part of a stop."""
        overlap = max((_overlap(text, stop) for stop in self.stops), default=0)
        return text[: len(text) - overlap].rstrip(HALF_CHARACTER).strip()

    def _send(self, text: str) -> str:
        if len(text) <= len(self.sent) or not text.startswith(self.sent):
            return ""
        piece = text[len(self.sent) :]
        self.sent = text
        return piece


class UnstableText(Exception):
    """A tokenizer decodes the tokens of an answer to other text once more tokens follow."""


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop."""
    longest = min(len(stop) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
