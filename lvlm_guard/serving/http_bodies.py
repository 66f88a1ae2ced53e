"""Bodies of requests, read within limits of size and time, and clients that go away meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from lvlm_guard.serving.api_errors import ApiError
from lvlm_guard.serving.settings import ServingLimits

Value = TypeVar("Value")


class ClientGone(Exception):
    """Whoever asked has closed the connection."""


async def read_body(request: Request, limits: ServingLimits) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: It is not JSON by its header, too large, or too slow.
        ClientGone: The client went away before all of it was there.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send JSON with the header Content-Type: application/json.", "unsupported_media_type")
    length = request.headers.get("content-length", "")
    if length.isdigit() and len(length) < 20 and int(length) > limits.max_body:  # noqa: PLR2004 - digits of 64 bits
        raise _describe_size(limits)
    try:
        return await asyncio.wait_for(_read_parts(request, limits), limits.body_seconds)
    except asyncio.TimeoutError:
        raise ApiError(
            408, f"The request did not arrive within {limits.body_seconds:g} s.", "request_timeout"
        ) from None
    except ClientDisconnect:
        raise ClientGone from None


async def _read_parts(request: Request, limits: ServingLimits) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limits.max_body:
            raise _describe_size(limits)
        parts.append(part)
    return b"".join(parts)


def _describe_size(limits: ServingLimits) -> ApiError:
    return ApiError(
        413, f"The request has more than {limits.max_body} bytes. Scale pictures down.", "request_too_large"
    )


async def run_while_connected(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Return the result of `work`, which is cancelled where the client goes away before it is done.

    Raises:
        ClientGone: It has.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for future in (task, watch):
            future.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
