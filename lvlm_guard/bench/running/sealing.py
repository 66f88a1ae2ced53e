"""Check values of what a run keeps, so that what was edited, moved, doubled or copied from elsewhere is found.

A check value covers the content and the place: the run, the file and the number of the line. It finds accidents and
careless edits; it is no signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.bench import files
from lvlm_guard.errors import InputError, quote

CHECK = "check"
"""Where a JSON object holds its check value."""

_BROKEN_JSON = (ValueError, RecursionError)


def seal(values: Mapping[str, Any], place: str | None) -> dict[str, Any]:
    """Return JSON values with the check value of their content at a place; without one where there is no place."""
    return dict(values) if place is None else {**values, CHECK: _checksum(values, place)}


def remove_check(values: Mapping[str, Any], place: str | None) -> dict[str, Any]:
    """Return sealed values without their check value.

    Raises:
        ValueError: They are not what was sealed at this place.
    """
    if place is None:
        return dict(values)
    content = {name: value for name, value in values.items() if name != CHECK}
    if values.get(CHECK) != _checksum(content, place):
        raise ValueError(
            "is not what the run wrote there: it was edited or copied from elsewhere, or the lines are not in their order"
        )
    return content


def _checksum(values: Mapping[str, Any], place: str) -> str:
    text = json.dumps([place, values], sort_keys=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=8).hexdigest()


def parse_object(content: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ValueError: It is none.
    """
    try:
        value = json.loads(content)
    except _BROKEN_JSON as error:
        raise ValueError(f"is damaged: no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"is damaged: no JSON object: {quote(value)}")  # noqa: TRY004 - the caller passed bytes
    return value


@dataclass(frozen=True)
class Ledger:
    """A file of JSON lines that grows at its end, each line sealed at its place.

    Args:
        path: The file.
        place: The run and the file, as part of every check value; None in a run that was begun before lines had any.
    """

    path: Path
    place: str | None

    def lines(self) -> list[bytes]:
        """Return the lines; one that was torn at the end is left out."""
        return files.whole_lines(self.path)

    def line(self, values: Mapping[str, Any], number: int) -> bytes:
        """Return the line of some values, given its number from 1."""
        return (json.dumps(seal(values, self._place(number)), ensure_ascii=False) + "\n").encode("utf-8")

    def values(self, line: bytes, number: int) -> dict[str, Any]:
        """Return the values of a line.

        Raises:
            InputError: It is damaged, or is not what was written there.
        """
        try:
            return remove_check(parse_object(line), self._place(number))
        except ValueError as error:
            raise self.damaged(number, str(error)) from error

    def _place(self, number: int) -> str | None:
        return None if self.place is None else f"{self.place}/{number}"

    def damaged(self, number: int, fault: str) -> InputError:
        """Build the error for a line that cannot be used: where it is, what it is, and the way out."""
        way_out = f"Keep the {number - 1} lines before it and remove the rest" if number > 1 else "Remove the file"
        return InputError(
            f"{self.path}, line {number}, {fault}. Nothing was read from it. {way_out}; then the command that began the run "
            "does what is missing again."
        )
