"""Logs as one JSON object a line, with nothing in them that a client wrote."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

LOGGER = logging.getLogger("lvlm_guard.serving")
LAST_FRAMES = 6


class JsonLines(logging.Formatter):
    """Writes records as JSON: time, level, event, and the fields of the record; never the text of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        own_event = record.name.startswith(LOGGER.name)
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage() if own_event else record.name,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            entry["error"], entry["frames"] = describe_error_place(record.exc_info[1])
        return json.dumps(entry)


def log_event(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with plain values."""
    LOGGER.log(level, event, extra={"fields": fields})


def log_failure(error: BaseException, **fields: Any) -> None:
    """Log where an error was raised; its message may quote a client, and is left out."""
    kind, frames = describe_error_place(error)
    log_event("generation_failed", logging.ERROR, error=kind, frames=frames, **fields)


def describe_error_place(error: BaseException) -> tuple[str, list[str]]:
    """Return the class of an error, and the last frames it went through."""
    frames = traceback.extract_tb(error.__traceback__)[-LAST_FRAMES:]
    return type(error).__name__, [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]


@contextmanager
def structured_logs(stream: TextIO = sys.stderr) -> Iterator[None]:
    """Send this server's logs, warnings and uvicorn's errors to a stream as JSON, until the end of the block."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger(name) for name in (LOGGER.name, "uvicorn.error")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if logger is LOGGER else logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning
            yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - the signature of warnings.showwarning
    line: str | None = None,  # noqa: ARG001 - as above
) -> None:
    """Log the class and place of a warning; its text may quote a client."""
    del message
    log_event("warning", logging.WARNING, category=category.__name__, place=f"{filename}:{lineno}")
