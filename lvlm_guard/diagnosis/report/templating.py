"""What pages are made with: templates that escape, and figures as tables show them. Pages need no network, no other file, no script."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]")
"""Control characters, marks that turn the direction of writing, and halves of characters."""
SMALL, LARGE = 1e-3, 1e6
"""Figures nearer to 0, and from there on, are written with an exponent."""


@cache
def environment() -> Environment:
    """Return the environment of the templates; answers and names are text of others, so everything is escaped."""
    return Environment(
        loader=PackageLoader("lvlm_guard.diagnosis.report", "templates"),
        autoescape=True,
        finalize=_replace_unseen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _replace_unseen(value: Any) -> Any:
    return _UNSEEN.sub("\ufffd", value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def write_number(value: Any) -> str:
    """Return a figure as a table shows it."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        size = abs(value)
        text = f"{value:.3f}" if size == 0 or SMALL <= size < LARGE else f"{value:.{1 if size < SMALL else 5}e}"
        return text.replace("-", "\u2212")
    return str(value)
