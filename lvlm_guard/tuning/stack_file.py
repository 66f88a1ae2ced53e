"""A stack as a TOML file that `Guard` loads, with where it comes from in its comments."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lvlm_guard.errors import InputError, quote

HEAD = "# Found by lvlm-guard tune"
"""How a file begins that a search wrote."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def format_stack(entries: Iterable[Mapping[str, Any]], provenance: Sequence[str]) -> str:
    """Return the text of a stack file.

    Args:
        entries: The stack.
        provenance: Lines that say where it comes from; what would end a comment is replaced.

    Raises:
        InputError: A parameter has a value that TOML cannot hold.
    """
    comments = [f"# {_flatten(line)}".rstrip() for line in provenance]
    tables = [_format_entry(entry) for entry in entries]
    return "\n".join([HEAD, *comments, "", *tables])


def _flatten(line: str) -> str:
    """Return text as a comment may hold it."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(line.split()))


def _format_entry(entry: Mapping[str, Any]) -> str:
    lines = ["[[stack]]", f"name = {json.dumps(entry['name'])}"]
    if entry.get("params"):
        lines.append(f"params = {_format_value(entry['params'])}")
    return "\n".join(lines) + "\n"


def _format_value(value: Any) -> str:
    """Return a value as TOML writes it within a line; an entry of a mapping that is None is left out."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        pairs = [f"{_format_key(key)} = {_format_value(inner)}" for key, inner in value.items() if inner is not None]
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_format_value, value))}]"
    raise InputError(f"A stack file cannot hold {quote(value)}.")


def _format_key(key: str) -> str:
    return key if _BARE.fullmatch(key) else json.dumps(key)
