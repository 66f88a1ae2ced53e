"""Templates of pages: what others wrote is escaped, and characters that cannot be seen are shown."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]")
"""Control characters, marks that turn the direction of writing, and halves of characters."""


@cache
def environment(package: str) -> Environment:
    """Return the environment of a package's folder `templates`, in which every template can include the others by name.

    Answers are text of a model and names text of others, so everything is escaped, whatever a template is called.
    """
    return Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        finalize=_replace_unseen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _replace_unseen(value: Any) -> Any:
    """Replace characters that have no sign, or that would turn the direction of writing, by a sign for that."""
    return _UNSEEN.sub("\ufffd", value) if isinstance(value, str) and not hasattr(value, "__html__") else value
