"""Files of pictures: opened by what they hold, and refused by their header where that is more than is read."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from lvlm_guard.errors import InputError

HEAD = 16
"""Bytes by which PIL's plugins know their kind of file."""
TIMES = 2
"""How often `PIL.Image.MAX_IMAGE_PIXELS` goes into the greatest picture that is read; PIL itself refuses from there on."""
MILLION = 10**6


@contextmanager
def opened_picture(content: bytes | Path, formats: Sequence[str] | None = None) -> Iterator[Image.Image]:
    """Open a picture file for the length of a block; nothing of it is decoded yet.

    PIL's own `open` warns of large pictures, for the whole process to see; here there is one limit and no warning.

    Args:
        content: What the file holds, or its path.
        formats: PIL's names of the formats that are tried; all by default.

    Raises:
        InputError: It holds more pixels than are read.
        OSError: It is in no format that PIL reads, or cannot be read.
    """
    with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        picture = _recognise(file, formats)
        check_pixels(picture.size)
        with picture:
            yield picture


def check_pixels(size: tuple[int, int]) -> None:
    """Refuse a picture that is too large to be read.

    Args:
        size: Width and height in pixels.

    Raises:
        InputError: It has more pixels than twice `PIL.Image.MAX_IMAGE_PIXELS`, unless that is None.
    """
    most, pixels = count_most_pixels(), size[0] * size[1]
    if most is not None and pixels > most:
        raise InputError(
            f"It has {size[0]} x {size[1]} pixels, {pixels / MILLION:.0f} million; at most {most / MILLION:.0f} million are read. "
            "Make it smaller: models see a few million pixels of a picture at most. In Python, a higher "
            "PIL.Image.MAX_IMAGE_PIXELS raises the limit, to twice its value."
        )


def count_most_pixels() -> int | None:
    """Return how many pixels a picture file may hold; None where PIL's limit was lifted."""
    return None if Image.MAX_IMAGE_PIXELS is None else TIMES * Image.MAX_IMAGE_PIXELS


def _recognise(file: IO[bytes], formats: Sequence[str] | None) -> Image.Image:
    """Return what the first of PIL's plugins makes of a file that takes it."""
    head = file.read(HEAD)
    for load_plugins in (Image.preinit, Image.init):  # the common ones, then all
        load_plugins()
        for name in Image.ID if formats is None else formats:
            picture = _try(name, head, file)
            if picture is not None:
                return picture
    raise UnidentifiedImageError("it is in no format that PIL reads")


def _try(name: str, head: bytes, file: IO[bytes]) -> Image.Image | None:
    if name not in Image.OPEN:
        return None
    factory, accept = Image.OPEN[name]
    accepted = accept is None or accept(head)
    if not accepted or isinstance(accepted, str):  # a text says which support is missing
        return None
    file.seek(0)
    try:
        return factory(file, "")
    except (SyntaxError, IndexError, TypeError, struct.error):
        return None  # of another kind after all, as PIL's own open takes these
