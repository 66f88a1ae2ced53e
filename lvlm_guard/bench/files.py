"""Files of a run: written whole or extended by whole pieces, by one process at a time in a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvlm_guard import files
from lvlm_guard.errors import InputError
from lvlm_guard.files import DRAFT as DRAFT  # noqa: PLC0414 - known to the store by this room
from lvlm_guard.files import exists


def write_whole(path: Path, content: bytes) -> None:
    """Write beside `path` under a temporary name and rename, so that `path` is never half a file.

    Raises:
        InputError: It could not be written; `path` is as it was.
    """
    files.write_whole(path, content, put=_put)


def append(path: Path, content: bytes) -> None:
    """Put content behind what the file holds, on the disk when this returns.

    Raises:
        InputError: It could not be written; a piece of it may stand at the end of the file.
    """
    with report_failure(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _put(handle, content)
        finally:
            os.close(handle)


def cut(path: Path, size: int) -> None:
    """Drop what stands behind `size` bytes; a file that is no longer than that stays as it is."""
    if exists(path) and path.stat().st_size > size:
        with report_failure(path):
            os.truncate(path, size)


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines that end in a line break, break included; a torn last line and a missing file give none.

    Raises:
        InputError: It cannot be read.
    """
    return [line + b"\n" for line in read_if_there(path).split(b"\n")[:-1]]


def read_if_there(path: Path) -> bytes:
    """Return the content of a file, nothing where there is none.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}.") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where it is not there.

    Raises:
        InputError: It cannot be made.
    """
    with report_failure(path):
        path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        InputError: It cannot be removed.
    """
    with report_failure(path):
        path.unlink(missing_ok=True)


def _put(handle: int, content: bytes | memoryview) -> None:
    """Write content; everything that a run keeps passes here."""
    files.put(handle, content)


@contextmanager
def report_failure(path: Path) -> Iterator[None]:
    """Turn what the system says into an error of the library that names `path`."""
    try:
        yield
    except OSError as error:
        raise files.unwritable(path, error) from error


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold a lock file, which names the process, until the end of the block.

    The system lets go of the lock when a process dies, however it dies, so a file left behind is taken over.

    Raises:
        InputError: Another process holds it, or the folder cannot be written to.
    """
    with report_failure(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with report_failure(path):
            _acquire(handle, path.parent)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, folder: Path) -> None:
    if not _try_lock(handle):
        holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
        raise InputError(f"{folder} is in use by process {holder}. Wait until it has ended, or name another folder.")
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode("ascii"))


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        """Lock the byte far behind the process id, which others may still read."""
        try:
            os.lseek(handle, 1 << 20, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        """Lock the file; return whether no other process holds it."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
