"""Pictures that a text names: paths, URLs, data URIs and base64."""

from __future__ import annotations

import base64
import http.client
import os
import re
import struct
import urllib.error
import urllib.parse
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lvlm_guard.errors import InputError, quote
from lvlm_guard.files import is_file, is_folder
from lvlm_guard.request import picture_arrays
from lvlm_guard.request.picture_files import opened_picture

LARGEST_DOWNLOAD = 64 * 2**20
"""Bytes of a remote picture that are read at most."""
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, LookupError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, NotImplementedError, MemoryError, RuntimeError),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What PIL raises about files that are no pictures, or broken ones."""
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://|(data|file):", re.IGNORECASE)
_OTHER_CONTENT = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the picture: run git lfs pull"),
    (b"<!doctype html", "it is an HTML page: download the picture itself"),
    (b"<html", "it is an HTML page: download the picture itself"),
    (b"<?xml", "it is XML, such as SVG: convert it to PNG"),
    (b"<svg", "it is SVG: convert it to PNG"),
    (b"%pdf", "it is a PDF: convert its pages to PNG"),
)


@dataclass(frozen=True)
class PictureSources:
    """Where pictures that a text names may come from; data URIs and base64 always may.

    Args:
        local: Whether paths and `file:` URLs are read. Turn it off where the text comes from strangers.
        remote: Whether `http` and `https` URLs are fetched, wherever they lead, redirects included.
        timeout: Seconds to wait for a server.

    Raises:
        InputError: A value of another type.
    """

    local: bool = True
    remote: bool = False
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("local", "remote"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"PictureSources.{name} is true or false, got {quote(getattr(self, name))}.")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, (int, float)) or not self.timeout > 0:
            raise InputError(f"PictureSources.timeout is a number of seconds, got {quote(self.timeout)}.")


LOCAL_ONLY = PictureSources()
"""Local paths and no URLs, as by default."""


def open_text(text: str, sources: PictureSources) -> Image.Image:
    """Return the picture, RGB and upright, that a path, URL, data URI or base64 names.

    Raises:
        InputError: It may not be read, is not there, or is no picture.
    """
    scheme = _SCHEME.match(text)
    kind = (scheme[1] or scheme[2]).lower() if scheme is not None else ""
    if kind == "data":
        return decode(_decode_uri(text), f"The picture in the data URI {quote(text, 60)}")
    if kind in ("http", "https"):
        return decode(_fetch(text, sources), f"The picture at {quote(text)}")
    if kind == "file":
        return open_path(_path_in_url(text), sources)
    if kind:
        raise InputError(f"A picture's URL begins with http, https, file or data, got {quote(text)}.")
    if sources.local and _find_file(text) is not None:
        return open_path(text, sources)
    content = _decode_base64(text)
    return open_path(text, sources) if content is None else decode(content, f"The picture in base64 {quote(text, 60)}")


def open_path(
    path: str | os.PathLike[str], sources: PictureSources = LOCAL_ONLY, least: int | None = None
) -> Image.Image:
    """Return the picture in a file, RGB and upright; a path that begins with `~` starts at home.

    Args:
        path: The file.
        sources: Whether local files may be read.
        least: As for `decode`.

    Raises:
        InputError: Local files may not be read, the file is not there, or it is no picture.
    """
    name = os.fspath(path)
    if not sources.local:
        raise InputError(f"Local paths are not read here, got {quote(name)}. Send the picture as a data URI.")
    file = _find_file(name)
    if file is None:
        raise InputError(f"The picture {quote(name)} cannot be read: {_why_no_file(name)}.")
    return decode(file, f"The picture {quote(name)}", least)


def decode(content: bytes | Path, subject: str, least: int | None = None) -> Image.Image:
    """Return a picture file's first frame, RGB and upright, as `transformers.image_utils.load_image` does.

    Args:
        content: What the file holds, or its path.
        subject: What errors call it.
        least: Pixels a side that are enough, where it is only to be shown: a large JPEG is decoded in part, which is quick.

    Raises:
        InputError: It is no picture, is broken, holds more pixels than are read, or levels beyond 8 bits whose greatest is unknown.
    """
    try:
        with opened_picture(content) as picture:
            if least is not None:
                picture.draft(None, (least, least))
            ImageOps.exif_transpose(picture, in_place=True)
            picture.load()
            return _convert(picture)
    except InputError as error:
        raise InputError(f"{subject} cannot be used: {error}") from None
    except BROKEN as error:
        raise InputError(f"{subject} cannot be read: {_explain(content, error)}.") from None


def _convert(picture: Image.Image) -> Image.Image:
    """Return a decoded picture as RGB of its own, without its transparency."""
    if picture_arrays.is_deep(picture):
        levels = np.asarray(picture)
        is_full = picture.format == "PNG"  # whose levels go up to 65535; those of other files may end anywhere
        return picture_arrays.read_array(picture_arrays.round_levels(levels) if is_full else levels).convert("RGB")
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        return picture.convert("RGBA").convert("RGB")  # straight away, PIL warns of the transparency that it drops
    return picture.convert("RGB")


def _explain(content: bytes | Path, error: BaseException) -> str:
    """Return what is wrong with a picture file, by how it begins where that says more than the decoder does."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"a part of it is too large ({error}); make it smaller"
    if isinstance(error, MemoryError):
        return "it is too large for the memory"
    head = _read_head(content)
    if not head:
        return "it is empty"
    content_kind = next((kind for start, kind in _OTHER_CONTENT if head.lstrip().lower().startswith(start)), None)
    if content_kind is not None:
        return content_kind
    if head[4:8] == b"ftyp":
        return "PIL does not read this kind of file (HEIC, AVIF or a video): convert it to JPEG or PNG"
    unknown = isinstance(error, UnidentifiedImageError)
    return "it is in no format that PIL reads" if unknown else f"it is broken ({error})"


def _read_head(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:64]
    try:
        with content.open("rb") as file:
            return file.read(64)
    except OSError:
        return b"?"


def _find_file(name: str) -> Path | None:
    """Return the file of a name as it stands, or with `~` for the home folder."""
    names = [name, os.path.expanduser(name)] if name.startswith("~") else [name]  # noqa: PTH111 - Path raises on odd names
    return next((Path(each) for each in names if is_file(each)), None)


def _why_no_file(name: str) -> str:
    if is_folder(name):
        return "it is a folder; name the file"
    hint = "" if os.path.isabs(name) else f"; paths start at {Path.cwd()}"  # noqa: PTH117 - as above
    return f"there is no such file{hint}"


def _path_in_url(url: str) -> str:
    """Return the path that a `file:` URL names."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise InputError(f"{quote(url)} is no URL: {error}.") from None
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{quote(url)} names a file on another machine; a file: URL has three slashes, file:///path.")
    return urllib.request.url2pathname(parts.path)


def _decode_uri(uri: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not (comma and header.lower().startswith("data:image/") and header.lower().endswith(";base64")):
        raise InputError(f"A picture's data URI begins data:image/png;base64, got {quote(header, 60)}.")
    content = _decode_base64(body)
    if content is None:
        raise InputError(f"The data URI {quote(uri, 60)} is not base64 behind its comma.")
    return content


def _decode_base64(text: str) -> bytes | None:
    """Return what base64 stands for, or None where a text is none; line breaks do not count."""
    try:
        return base64.b64decode("".join(text.split()), validate=True) or None
    except ValueError:
        return None


def _fetch(url: str, sources: PictureSources) -> bytes:
    """Return the content at a URL.

    Raises:
        InputError: URLs may not be fetched, or this one cannot be.
    """
    if not sources.remote:
        raise InputError(
            f"Remote pictures are off, got {quote(url)}. Allow them, Guard(..., pictures=PictureSources(remote=True)), or "
            "pass the picture itself."
        )
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "lvlm-guard"})  # noqa: S310 - http and https only
        with urllib.request.urlopen(request, timeout=sources.timeout) as response:  # noqa: S310 - as above
            content: bytes = response.read(LARGEST_DOWNLOAD + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"The picture at {quote(url)} cannot be fetched: {quote(error)}.") from None
    if len(content) > LARGEST_DOWNLOAD:
        raise InputError(
            f"The picture at {quote(url)} has more than {LARGEST_DOWNLOAD >> 20} MiB; download it yourself."
        )
    return content
