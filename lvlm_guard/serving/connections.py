"""Connections of clients: each has to begin a request in time, so that those that say nothing take no place for ever."""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

SPARE_FILES = 256
"""Open files beside connections: the model's, the log's, pictures that are fetched."""


class TimedProtocol(H11Protocol):
    """Closes a connection on which no request begins in time: the first, or one of which some bytes are there."""

    head_seconds = 20.0
    """For the line and headers of a request; heads of more than 64 KiB are refused by h11."""
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Read, and wait for the rest of a head."""
        super().data_received(data)
        if self._is_answering:
            self._stop_waiting()
        elif self._head_timer is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._end_silent)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_silent(self) -> None:
        self._head_timer = None
        if not self._is_answering and not self.transport.is_closing():
            self.transport.close()


def build_protocol(seconds: float) -> type[TimedProtocol]:
    """Return uvicorn's protocol of HTTP/1.1, with a limit of seconds for the line and headers of a request."""
    return type("TimedProtocol", (TimedProtocol,), {"head_seconds": seconds})


def allow_open_files(connections: int) -> int:
    """Raise this process's limit of open files so that so many connections fit; return how many do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(min(connections, soft - SPARE_FILES), 1)
