"""Where files of the testbed may go, and how they are written: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lvlm_guard.errors import InputError


def check_destination(path: Path, what: str) -> None:
    """Refuses a place where nothing can be written, before any work is done for it.

    Raises:
        InputError: `path` is a folder, or lies in one that does not exist.
    """
    if path.is_dir():
        raise InputError(f"{what}: {path} is a folder. Name a file in it, such as {path / what}.")
    if not path.parent.is_dir():
        raise InputError(f"{what}: the folder {path.parent} does not exist. Create it first, or name another one.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{what}: the folder {path.parent} cannot be written to. Name another one.")


def write_whole(path: Path, content: bytes) -> None:
    """Writes beside `path` under a temporary name and renames, so that `path` is never half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        draft.chmod(0o644)  # a temporary file is made for its owner alone
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
