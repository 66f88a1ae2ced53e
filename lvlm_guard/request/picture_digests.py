"""Digests of pictures by their levels, taken a band of rows at a time: a picture may be large."""

from __future__ import annotations

import hashlib

from PIL import Image

BAND = 2**22
"""Pixels of a band, about."""


def digest_levels(picture: Image.Image, label: str) -> str:
    """Return the SHA-256 of a label and of all levels of a picture behind it, in hexadecimal.

    Args:
        picture: The picture.
        label: What else counts, such as its size.
    """
    digest = hashlib.sha256(label.encode())
    rows = max(BAND // max(picture.width, 1), 1)
    for top in range(0, picture.height, rows):
        digest.update(picture.crop((0, top, picture.width, min(top + rows, picture.height))).tobytes())
    return digest.hexdigest()
