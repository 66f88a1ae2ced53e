"""Recognise what a failed download leaves in the place of a file."""

from __future__ import annotations

HEAD = 512
"""Bytes that are enough to tell."""

_STARTS = {
    b"version https://git-lfs": "a git-LFS pointer instead of the file; fetch the file itself with git lfs pull",
    b"<!doctype html": "an HTML page, so the download failed; download it again, logged in if the source wants that",
    b"<html": "an HTML page, so the download failed; download it again, logged in if the source wants that",
    b"<?xml": "an XML page, so the download failed; download it again",
    b"<error": "an XML page, so the download failed; download it again",
    b"pk\x03\x04": "a ZIP archive; unpack it",
    b"\x1f\x8b": "a gzip archive; unpack it",
}


def recognise(head: bytes) -> str | None:
    """Return what a file is, given its beginning and knowing that it is not what it should be; None where unknown."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        return "empty"
    return next((kind for mark, kind in _STARTS.items() if start.startswith(mark)), None)
