"""Files are looked for without raising, and written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from lvlm_guard.errors import InputError, quote

DRAFT = ".draft"
"""How the name of an unfinished file ends."""


def exists(path: str | Path) -> bool:
    """Return whether something is there. False for names that no file can have, for which a `Path` raises."""
    return os.path.exists(path)  # noqa: PTH110 - as the docstring says


def is_file(path: str | Path) -> bool:
    """Return whether a file is there. False for names that no file can have, for which a `Path` raises."""
    return os.path.isfile(path)  # noqa: PTH113 - as the docstring says


def is_folder(path: str | Path) -> bool:
    """Return whether a folder is there. False for names that no file can have, for which a `Path` raises."""
    return os.path.isdir(path)  # noqa: PTH112 - as the docstring says


def check_name(path: str | Path) -> None:
    """Refuse a name that no file can have, before any work is done for it.

    Raises:
        InputError: It is too long, for example, or holds a NUL.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{quote(str(path))} can be no file or folder: {reason}. Name another place.") from error


def put(handle: int, content: bytes | memoryview) -> None:
    """All of `content` into an open file, on the disk when this returns."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.fsync(handle)


def write_whole(path: Path, content: bytes | memoryview, put: Callable[[int, bytes | memoryview], None] = put) -> None:
    """Write beside `path` under a temporary name and rename, so that `path` is never half a file.

    Args:
        path: The file; what was there is replaced.
        content: All of it.
        put: Writes to an open file.

    Raises:
        InputError: It could not be written, because there is no space left, for example; `path` is as it was.
    """
    draft = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=DRAFT)
        draft = Path(name)
        with os.fdopen(handle, "wb", 0) as file:
            put(file.fileno(), content)
        draft.chmod(0o644)  # a temporary file is made for its owner alone
        draft.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file piece by piece, as `write_whole` does, so that no more than a piece of it is held.

    Raises:
        InputError: It could not be written; `path` is as it was.
    """

    def put_all(handle: int, _: bytes | memoryview) -> None:
        for piece in pieces:
            put(handle, piece)

    write_whole(path, b"", put_all)


def unwritable(path: Path, error: OSError) -> InputError:
    """What to tell when `path` cannot be written: the system's reason, and the way out."""
    return InputError(
        f"{path} could not be written: {error.strerror or error}. Nothing of it was kept. Make room or name another "
        "place, then run the same command again."
    )
