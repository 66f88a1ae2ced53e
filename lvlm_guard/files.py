"""Files are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from lvlm_guard.errors import InputError

DRAFT = ".draft"
"""How the name of an unfinished file ends."""


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


def unwritable(path: Path, error: OSError) -> InputError:
    """What to tell when `path` cannot be written: the system's reason, and the way out."""
    return InputError(
        f"{path} could not be written: {error.strerror or error}. Nothing of it was kept. Make room or name another "
        "place, then run the same command again."
    )
