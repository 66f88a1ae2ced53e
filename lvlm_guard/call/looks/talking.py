"""A conversation whose next turn runs only what is new, for main and branches."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from lvlm_guard.call.looks.look import Look, LookingGuard
from lvlm_guard.call.looks.opening import LookSubject, open_inputs
from lvlm_guard.errors import InputError
from lvlm_guard.request import conversation
from lvlm_guard.request.messages import is_batch


class Conversation:
    """One conversation, made by `Guard.conversation`, that remembers what was run of it.

    Every call of `chat` gets all messages so far. What its prompt has in common with the one before, token by token, is not run
    again, for main and for each branch; a new picture runs the conversation anew up to its end. Answers are those of
    `Guard.chat`, to rounding.

    Args:
        guard: What it uses of the guard.
    """

    def __init__(self, guard: Any) -> None:
        looking: LookingGuard = guard
        self._guard = looking
        self._look: Look | None = None
        self._lock = threading.RLock()

    @property
    def guard(self) -> Any:
        """The guard that made it."""
        return self._guard.maker

    def chat(self, messages: Sequence[Any], images: Any = None, **kwargs: Any) -> str:
        """Answer the messages so far (text).

        Args:
            messages: The whole conversation, pictures in any turn.
            images: Pictures for image items that carry none.
            **kwargs: Passed on to generate.

        Raises:
            InputError: A list of conversations, or messages that cannot be read.
            Refused: As `Look.generate`.
        """
        if is_batch(messages):
            raise InputError("A conversation object remembers one conversation: make one for each.")
        maker = self._guard.maker
        batch = maker.inputs(images=images, messages=messages)
        with self._lock:
            output = self._find_look(batch).generate(**batch, **kwargs)
            start = maker.report.answer_start
        answer: str = conversation.decode_answers(maker.processor, output, start, many=True)[0]
        return answer

    def close(self) -> None:
        """Let go of all that was run; the next turn runs the conversation anew."""
        with self._lock:
            if self._look is not None:
                self._look.close()
            self._look = None

    def _find_look(self, batch: Mapping[str, Any]) -> Look:
        """Return the look of the turns before, or a new one where this turn does not go on from them."""
        if self._look is None or not self._look.fits(batch):
            self.close()
            opening = open_inputs(self._guard.build_request(dict(batch)))
            self._look = Look(LookSubject(opening), self._guard, advances=True)
        return self._look
