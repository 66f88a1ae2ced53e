"""Pictures of clients: how much they may hold is read from their headers before they are decoded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lvlm_guard.errors import InputError, shorten
from lvlm_guard.request.picture_files import opened_picture
from lvlm_guard.request.picture_sources import BROKEN, decode
from lvlm_guard.serving.api_errors import ApiError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is decoded; other decoders of PIL start programs, or are rarely used and less tried."""


@dataclass
class PictureGate:
    """Turns the URLs of one request into pictures, within limits for all of them.

    Args:
        fetch: Returns what is at an http or https URL; None refuses those.
        pixels: How many all pictures together may have.
        pictures: How many there may be.
    """

    fetch: Callable[[str], bytes] | None
    pixels: int
    pictures: int

    def read(self, url: str, param: str) -> Any:
        """Return the picture, RGB and upright, of a data URI or URL; blocks while it is fetched and decoded.

        Raises:
            ApiError: There are too many, it is too large, may not be fetched, or cannot be read.
        """
        self.pictures -= 1
        if self.pictures < 0:
            raise ApiError(
                400, "The request has more pictures than this server takes.", "too_many_pictures", param=param
            )
        content = self._load(url, param)
        self._count_pixels(content, param)
        try:
            return decode(content, "The picture")
        except InputError as error:
            raise ApiError(400, str(error), "invalid_image", param=param) from None

    def _load(self, url: str, param: str) -> bytes:
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            return _decode_uri(url, param)
        if scheme not in ("http", "https"):
            raise ApiError(
                400,
                f"A picture is a data URI, data:image/png;base64,..., got {shorten(url, 60)!r}.",
                "invalid_image_url",
                param=param,
            )
        if self.fetch is None:
            raise ApiError(
                400,
                "This server fetches no pictures. Send the picture as a data URI, data:image/png;base64,...",
                "remote_pictures_off",
                param=param,
            )
        try:
            return self.fetch(url)
        except InputError as error:
            raise ApiError(400, str(error), "invalid_image_url", param=param) from None

    def _count_pixels(self, content: bytes, param: str) -> None:
        """Refuse a picture by the size in its header, which costs nothing to read."""
        try:
            with opened_picture(content, FORMATS) as header:
                width, height = header.size
        except InputError:
            raise _describe_size("far too many", param) from None
        except BROKEN:
            raise ApiError(
                400, f"The picture cannot be read: send {', '.join(FORMATS)}.", "invalid_image", param=param
            ) from None
        self.pixels -= width * height
        if self.pixels < 0:
            raise _describe_size(f"{width} x {height}", param)


def _describe_size(pixels: str, param: str) -> ApiError:
    return ApiError(
        400,
        f"The pictures of the request have more pixels than this server takes; this one has {pixels}. Scale it down.",
        "image_too_large",
        param=param,
    )


def _decode_uri(url: str, param: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma or not header.lower().startswith("data:image/") or not header.lower().endswith(";base64"):
        raise ApiError(400, "A picture's data URI begins data:image/png;base64,.", "invalid_image_url", param=param)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "The data URI is not base64 behind its comma.", "invalid_image_url", param=param) from None
