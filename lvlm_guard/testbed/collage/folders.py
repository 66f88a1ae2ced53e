"""Where the downloaded parts of the collage world are kept."""

from __future__ import annotations

import os
from pathlib import Path

from lvlm_guard.testbed.files import check_folder, clear_failure

VARIABLE = "LVLM_GUARD_HOME"
"""Environment variable that names another folder than the usual one."""


def default_folder() -> Path:
    """Return the folder of the parts: `$LVLM_GUARD_HOME/collage`, else `collage` in the user's cache of `lvlm_guard`."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser() / "collage"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "lvlm_guard" / "collage"


def ready_folder(chosen: Path | None = None) -> Path:
    """Return the folder that parts are fetched into: the chosen one, which must have a parent, or the usual one, made.

    Raises:
        InputError: The chosen one cannot be used.
        TestbedError: The usual one cannot be made.
    """
    folder = default_folder() if chosen is None else chosen
    with clear_failure(folder):
        if chosen is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
        check_folder(folder, "the folder of the parts")
        folder.mkdir(exist_ok=True)
    return folder
