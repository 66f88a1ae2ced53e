"""A limit for what could wait for ever: what goes beyond it fails at once, and says what was waited for, and where."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def run_within(seconds: float, what: str, function: Callable[[], Value]) -> Value:
    """Return what a function returns, which runs in a thread of its own and is left there where it takes too long.

    A limit by signal would not do: Ray turns whatever a handler raises into an interrupt of the whole run.

    Args:
        seconds: The limit.
        what: What is waited for, for the message.
        function: Takes nothing.

    Raises:
        AssertionError: It takes longer; with the stack of the thread.
    """
    outcomes: queue.Queue[tuple[Value | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            outcomes.put((function(), None))
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            outcomes.put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        value, error = outcomes.get(timeout=seconds)
    except queue.Empty:
        stack = "".join(traceback.format_stack(sys._current_frames()[thread.ident or 0]))
        raise AssertionError(f"{what}: not done within {seconds:g} seconds. It waits here:\n{stack}") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value] # there is one where nothing was raised
