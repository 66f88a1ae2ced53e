"""Folders of exports: whole or not there, and never in place of something else."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lvlm_guard.errors import InputError
from lvlm_guard.files import DRAFT, check_name, exists, is_file, is_folder, unwritable, write_whole

MANIFEST = "lvlm_guard_export.json"
"""Written last: a folder without it is no export."""


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a place where no export can go, before any work is done for it.

    Args:
        folder: Where it should go.
        force: Whether an export that is there may be replaced.

    Raises:
        InputError: Something is there that is no empty folder, its parent is missing, or cannot be written to.
    """
    check_name(folder)
    parent = folder.absolute().parent
    if not is_folder(parent):
        raise InputError(f"The folder {parent} does not exist. Create it first, or name another place.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"The folder {parent} cannot be written to. Name another place.")
    if not exists(folder) or (is_folder(folder) and not any(folder.iterdir())):
        return
    if not is_folder(folder) or not is_file(folder / MANIFEST):
        raise InputError(f"{folder} is there, and no export of lvlm-guard: it is not replaced. Name another folder.")
    if not force:
        raise InputError(f"{folder} exists. Name another folder, or replace it with --force.")


def write_folder(folder: Path, fill: Callable[[Path], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Fill a folder beside its place, add the manifest, and move it there; return the manifest. What JSON lacks is kept as text.

    Args:
        folder: Where it goes; an export that is there is replaced once the new one is whole.
        fill: Writes everything else into the folder that it is given, and returns the manifest.

    Raises:
        InputError: It cannot be written; what was there is as it was.
    """
    parent = folder.absolute().parent
    try:
        draft = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}.", suffix=DRAFT))
        try:
            draft.chmod(0o755)  # a temporary folder is made for its owner alone
            manifest = fill(draft)
            write_whole(draft / MANIFEST, (json.dumps(manifest, indent=2, default=str) + "\n").encode())
            _move(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    return manifest


def _move(draft: Path, folder: Path) -> None:
    """Put a folder in its place, and remove what was there once it is."""
    if not is_folder(folder):
        draft.rename(folder)
        return
    before = Path(tempfile.mkdtemp(dir=draft.parent, prefix=f".{folder.name}.", suffix=DRAFT))
    try:
        folder.rename(before)  # over an empty folder
        draft.rename(folder)
    except OSError:
        if not exists(folder):
            before.rename(folder)
        raise
    finally:
        shutil.rmtree(before, ignore_errors=True)
