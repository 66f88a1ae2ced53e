"""Where files of the testbed may go, and how they are written: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvlm_guard import files
from lvlm_guard.errors import InputError
from lvlm_guard.files import check_name, exists, is_folder
from lvlm_guard.testbed.errors import TestbedError


def check_destination(path: Path, what: str) -> None:
    """Refuse a place where nothing can be written, before any work is done for it.

    Raises:
        InputError: `path` is a folder, or lies in one that does not exist.
    """
    check_name(path)
    if is_folder(path):
        raise InputError(f"{what}: {path} is a folder. Name a file in it, such as {path / what}.")
    if not is_folder(path.parent):
        raise InputError(f"{what}: the folder {path.parent} does not exist. Create it first, or name another one.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{what}: the folder {path.parent} cannot be written to. Name another one.")


def check_folder(path: Path, what: str) -> None:
    """Refuse a folder that is not there and cannot be made, or that cannot be written to.

    Raises:
        InputError: `path` is a file, its parent does not exist, or one of the two is not ours to write to.
    """
    check_name(path)
    if exists(path) and not is_folder(path):
        raise InputError(f"{what} must be a folder, but {path} is a file. Name another one.")
    if not exists(path) and not is_folder(path.parent):
        raise InputError(f"{what}: the folder {path.parent} does not exist. Create it first, or name another one.")
    place = path if exists(path) else path.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{what}: the folder {place} cannot be written to. Name another one.")


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write beside `path` under a temporary name and rename, so that `path` is never half a file.

    Raises:
        TestbedError: It could not be written, because there is no space left, for example; `path` is as it was.
    """
    try:
        files.write_whole(path, content)
    except InputError as problem:
        raise TestbedError(str(problem)) from problem


@contextmanager
def clear_failure(path: Path) -> Iterator[None]:
    """Turn what the system says when `path` cannot be written into an error that names it and the way out."""
    try:
        yield
    except OSError as problem:
        raise TestbedError(str(files.unwritable(path, problem))) from problem
