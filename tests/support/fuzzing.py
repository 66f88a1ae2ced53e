"""Random misuse of one public surface, and what counts as a fault: anything but a result or a short error of the library."""

from __future__ import annotations

import random
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lvlm_guard.errors import GuardError

SCREEN = 2000
"""Characters an error message may have: 25 lines of 80 columns."""
SECONDS = 20
"""Time that one attempt may take."""


@dataclass(frozen=True)
class Attempt:
    """One use of a surface.

    Args:
        description: What is tried, short enough for a test's output.
        run: Tries it.
        plain: The same without the library, where it may fail as the library does not: `model.generate`, a processor.
    """

    description: str
    run: Callable[[], object]
    plain: Callable[[], object] | None = None


@dataclass(frozen=True)
class Surface:
    """A public door, and how to draw uses and misuses of it.

    Args:
        name: What it is called in test ids.
        draw: Returns an attempt, given a source of chance and an empty folder.
        attempts: How many belong to a full run.
        slice: How many belong to the suite.
    """

    name: str
    draw: Callable[[random.Random, Path], Attempt]
    attempts: int
    slice: int


class TookTooLong(Exception):
    """An attempt ran beyond its time."""


def find_fault(attempt: Attempt) -> str | None:
    """Run an attempt; return what is wrong with how it ended, or None."""
    try:
        with _limited_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attempt.run()
    except GuardError as error:
        return _judge_message(str(error))
    except Exception as error:  # noqa: BLE001 - whatever is raised is the finding
        if attempt.plain is not None and _raises(attempt.plain, type(error)):
            return None
        return f"{type(error).__name__}: {str(error)[:200]}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
    return None


def _judge_message(message: str) -> str | None:
    if len(message) > SCREEN:
        return f"a message of {len(message)} characters: {message[:200]}"
    return None if len(message.split()) > 2 else f"a message that says nothing: {message!r}"


def _raises(run: Callable[[], object], kind: type[BaseException]) -> bool:
    try:
        with _limited_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    except kind:
        return True
    except Exception:  # noqa: BLE001 - another error than the library's
        return False
    return False


@contextmanager
def _limited_time() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise TookTooLong(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    remaining = signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(remaining)
        signal.signal(signal.SIGALRM, before)
