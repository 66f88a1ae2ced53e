"""Warnings that point at the line of the user's that led to them, however deep in the library they are given."""

from __future__ import annotations

import inspect
import warnings
from types import FrameType

INNER_PACKAGES = frozenset({"lvlm_guard", "torch"})


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the innermost frame that belongs neither to the library nor to torch, whose decorators stand between."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_back is not None and _is_inner(frame):
        frame = frame.f_back
    if frame is None:  # an interpreter without frames
        warnings.warn(message, category, stacklevel=2)
        return
    module = frame.f_globals.get("__name__", "")
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, registry)


def _is_inner(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in INNER_PACKAGES
