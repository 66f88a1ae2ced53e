"""A server as a process: it listens, answers, and drains when it is told to stop."""

from __future__ import annotations

import ipaddress
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from lvlm_guard.errors import InputError
from lvlm_guard.guard import Guard
from lvlm_guard.host.stack import Stack
from lvlm_guard.serving.admission import KeyRing
from lvlm_guard.serving.app import build_app
from lvlm_guard.serving.chat_service import ChatService
from lvlm_guard.serving.connections import allow_open_files, build_protocol
from lvlm_guard.serving.conversations import RequestReader
from lvlm_guard.serving.engine import Engine
from lvlm_guard.serving.hugging_face import HuggingFaceEngine
from lvlm_guard.serving.remote_pictures import RemotePictures
from lvlm_guard.serving.settings import ServingLimits
from lvlm_guard.serving.special_texts import SpecialTexts
from lvlm_guard.serving.structured_logs import log_event, structured_logs

KEEP_ALIVE = 30
MORE_CONNECTIONS = 2048
"""Connections beside those of open requests: page, health, metrics, clients that are told to come back, and those that say nothing."""


@dataclass(frozen=True)
class ListeningPlace:
    """Where a server listens, and who may come.

    Args:
        host: Name or address.
        port: 0 takes a free one, which the first line of the log names.
        keys: API keys; without any, everybody who reaches the host may come.
        is_open: Whether that is meant, on an address that others reach.

    Raises:
        InputError: An address that others reach, without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    is_open: bool = False

    def __post_init__(self) -> None:
        if not all(self.keys):
            raise InputError("An API key is empty. Give a secret text.")
        if not self.keys and not self.is_open and not _is_loopback(self.host):
            raise InputError(
                f"{self.host} may be reached by others: set an API key (--api-key, LVLM_GUARD_API_KEY), or say --open."
            )


def run_server(
    guard: Guard,
    model: str,
    stacks: Mapping[str, Stack],
    place: ListeningPlace,
    limits: ServingLimits,
    *,
    remote_pictures: bool = False,
) -> None:
    """Serve a model until the process is told to stop; open requests are answered first.

    Args:
        guard: The model and its processor.
        model: The name that clients call it by.
        stacks: What requests may choose, by name; the first is the default.
        place: Where to listen.
        limits: What is allowed.
        remote_pictures: Whether URLs of pictures are fetched from the open internet.
    """
    run_engine(
        lambda: HuggingFaceEngine(guard, stacks, limits), guard.processor, model, next(iter(stacks)), place, limits,
        remote_pictures=remote_pictures,
    )  # fmt: skip


def run_engine(
    start: Callable[[], Engine],
    processor: Any,
    model: str,
    default: str,
    place: ListeningPlace,
    limits: ServingLimits,
    *,
    remote_pictures: bool = False,
) -> None:
    """Serve what an engine answers until the process is told to stop; open requests are answered first.

    Args:
        start: Starts the engine.
        processor: The model's.
        model: The name that clients call it by.
        default: Name of the stack of requests that name none.
        place: Where to listen.
        limits: What is allowed.
        remote_pictures: Whether URLs of pictures are fetched from the open internet.
    """
    with structured_logs():
        service = describe_service(
            start(), processor, model, default, place.keys, limits, remote_pictures=remote_pictures
        )
        server: uvicorn.Server

        def is_draining() -> bool:
            return server.should_exit

        app = build_app(service, is_draining)
        config = uvicorn.Config(
            app, host=place.host, port=place.port, log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=max(round(limits.drain_seconds), 1), timeout_keep_alive=KEEP_ALIVE,
            limit_concurrency=allow_open_files(limits.queue + MORE_CONNECTIONS), proxy_headers=False, lifespan="on",
            http=build_protocol(limits.head_seconds), ws="none",
        )  # fmt: skip
        server = AnnouncedServer(config, lambda port: log_event("listening", host=place.host, port=port, model=model))
        server.run()
        log_event("stopped")


def build_service(
    guard: Guard,
    model: str,
    stacks: Mapping[str, Stack],
    keys: Sequence[str],
    limits: ServingLimits,
    *,
    remote_pictures: bool = False,
) -> ChatService:
    """Return what answers requests, its worker running; see `run_server`."""
    engine = HuggingFaceEngine(guard, stacks, limits)
    default = next(iter(stacks))
    return describe_service(engine, guard.processor, model, default, keys, limits, remote_pictures=remote_pictures)


def describe_service(
    engine: Engine,
    processor: Any,
    model: str,
    default: str,
    keys: Sequence[str],
    limits: ServingLimits,
    *,
    remote_pictures: bool = False,
) -> ChatService:
    """Return what passes requests on to an engine that runs; see `run_engine`."""
    fetch = RemotePictures(largest=limits.max_body).fetch if remote_pictures else None
    reader = RequestReader(model, engine, default, limits, SpecialTexts(processor), fetch)
    return ChatService(reader, limits, KeyRing(keys))


class AnnouncedServer(uvicorn.Server):
    """A server that says where it listens once it does.

    Args:
        config: Of uvicorn.
        announce: Called with the port.
    """

    def __init__(self, config: uvicorn.Config, announce: Callable[[int], None]) -> None:
        super().__init__(config)
        self._announce = announce

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain at SIGTERM and SIGINT, and then return, so that a server that was told to stop ends without an error."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Begin to listen."""
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self._announce(self.servers[0].sockets[0].getsockname()[1])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
