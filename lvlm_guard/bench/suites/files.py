"""Read the files of suites, row by row with line numbers: JSON Lines, JSON arrays, whole documents and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.suite import Loaded, Problem, Required
from lvlm_guard.errors import InputError

_BETWEEN = re.compile(r"[\s,]*")
_BROKEN_JSON = (ValueError, RecursionError)
_LONGEST_ID = 18
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class BadRow(InputError):
    """One row cannot be used; the rest of the file may be fine."""


@dataclass(frozen=True)
class FileRow:
    """One record of a file, and where it stands.

    The readers raise `BadRow` where a value is missing or of another type.
    """

    file: str
    line: int
    values: Mapping[str, Any]

    def text(self, key: str) -> str:
        """Return a string that is not blank and holds no half of a surrogate pair, which UTF-8 cannot encode."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip() or _SURROGATE.search(value):
            raise BadRow(f"{key!r} should be a text, and is {_shown(self.values, key)}")
        return value

    def word(self, key: str, words: Collection[str]) -> str:
        """Return one of the known words, in lower case, surrounding blanks dropped."""
        value = self.text(key).strip().lower()
        if value not in words:
            raise BadRow(f"{key!r} should be one of {', '.join(sorted(words))}, and is {_shown(self.values, key)}")
        return value

    def name(self, key: str) -> str:
        """Return a whole number or a text, as text."""
        value = self.values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**_LONGEST_ID:
            return str(value)
        return self.text(key).strip()

    def number(self, key: str) -> int:
        """Return a whole number from 0, as a number or as text."""
        name = self.name(key)
        if not (name.isascii() and name.isdecimal() and len(name) <= _LONGEST_ID):
            raise BadRow(f"{key!r} should be a whole number, and is {_shown(self.values, key)}")
        return int(name)

    def names(self, key: str) -> list[str]:
        """Return a list of texts; it may be empty."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(element, str) for element in value):
            raise BadRow(f"{key!r} should be a list of texts, and is {_shown(self.values, key)}")
        return list(value)

    def problem(self, what: object) -> Problem:
        """Return what is wrong with this row."""
        return Problem(self.file, self.line, str(what))


@dataclass(frozen=True)
class Read:
    """The rows of one file, and what of it could not be read."""

    path: Path
    rows: Sequence[FileRow]
    problems: Sequence[Problem]


def read_rows(path: Path) -> Read:
    """Read a file of records: an array where its first character is `[`, else one record a line.

    Raises:
        InputError: It cannot be opened.
    """
    content = read_bytes(path)
    readings = _of_array(content, path) if content.lstrip()[:1] == b"[" else _of_lines(content, path)
    entries = list(readings)
    return Read(
        path,
        [entry for entry in entries if isinstance(entry, FileRow)],
        [entry for entry in entries if isinstance(entry, Problem)],
    )


def read_bytes(path: Path) -> bytes:
    """Return the content without a byte order mark.

    Raises:
        InputError: It cannot be opened.
    """
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}.") from error


def read_text(path: Path, need: Required) -> str:
    """Return a whole file as text.

    Raises:
        InputError: It cannot be opened, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unlike(path, need, str(error)) from error


def read_document(path: Path, need: Required) -> Any:
    """Return a whole file as one JSON value.

    Raises:
        InputError: It cannot be opened, or is no JSON.
    """
    try:
        return json.loads(read_text(path, need))
    except _BROKEN_JSON as error:
        raise _unlike(path, need, str(error)) from error


def records(document: Any, path: Path, need: Required, key: str) -> list[FileRow]:
    """Return the records that a JSON document lists under a key; the line of each is its place in the list.

    Raises:
        InputError: It has no such list.
    """
    values = document.get(key) if isinstance(document, dict) else None
    if not isinstance(values, list):
        raise _unlike(path, need, f"it has no list {key!r}")
    return [
        FileRow(f"{path.name}, {key}", at, value if isinstance(value, dict) else {})
        for at, value in enumerate(values, 1)
    ]


def _of_lines(content: bytes, path: Path) -> Iterator[FileRow | Problem]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield _entry(line, path.name, number)


def _entry(line: bytes, file: str, number: int) -> FileRow | Problem:
    try:
        value = json.loads(line.decode("utf-8"))
    except _BROKEN_JSON as error:
        return Problem(file, number, f"no JSON: {error}")
    return FileRow(file, number, value) if isinstance(value, dict) else Problem(file, number, "no JSON object")


def _of_array(content: bytes, path: Path) -> Iterator[FileRow | Problem]:
    try:
        text = content.decode("utf-8").lstrip()
    except UnicodeDecodeError as error:
        yield Problem(path.name, 1 + content.count(b"\n", 0, error.start), f"not UTF-8: {error.reason}")
        return
    decoder = json.JSONDecoder()
    at, counted_to, line = 1, 0, 1 + content[: len(content) - len(content.lstrip())].count(b"\n")
    while True:
        gap = _BETWEEN.match(text, at)
        at = gap.end() if gap else at
        line, counted_to = line + text.count("\n", counted_to, at), at
        if text[at : at + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except _BROKEN_JSON as error:
            yield Problem(path.name, line, f"the rest of the file could not be read: {error}")
            return
        yield FileRow(path.name, line, value) if isinstance(value, dict) else Problem(path.name, line, "no JSON object")


def build_items(read: Read, need: Required, make: Callable[[FileRow], Iterable[Item]]) -> Loaded:
    """Make items of all rows; rows that `make` refuses, and ids that occurred before, become problems.

    Raises:
        InputError: Not one row can be used; names the file, the first problem and the expected layout.
    """
    items: dict[str, Item] = {}
    problems = list(read.problems)
    for row in read.rows:
        try:
            fresh = list(make(row))
        except BadRow as error:
            problems.append(row.problem(error))
            continue
        again = [item.id for item in fresh if item.id in items]
        if again:
            problems.append(row.problem(f"the id {again[0]!r} occurred before"))
        else:
            items.update((item.id, item) for item in fresh)
    if not items:
        first = f"line {problems[0].line}: {problems[0].what}" if problems else "it is empty"
        raise _unlike(read.path, need, first)
    return Loaded(tuple(items.values()), tuple(sorted(problems, key=lambda problem: problem.line)))


def join(parts: Iterable[Loaded]) -> Loaded:
    """Join everything that several files hold, in their order."""
    every = list(parts)
    return Loaded(
        tuple(item for part in every for item in part.items),
        tuple(problem for part in every for problem in part.problems),
    )


def find_file(suite: str, data: Path | None, need: Required, *folders: str) -> Path:
    """Find a required file under the data folder, or under the first of some folders in it that has it.

    Raises:
        InputError: It is in none of them; says what it is, where it comes from and what it looks like.
    """
    if data is not None:
        for folder in ("", *folders):
            path = data / folder / need.path
            if path.exists():
                return path
    raise missing(suite, data, need)


def missing(suite: str, data: Path | None, need: Required) -> InputError:
    """Build the error for something required that is not there."""
    place = (
        f"{data / need.path} does not exist" if data is not None else f"{suite} needs a data folder with {need.path}"
    )
    return InputError(f"{suite}: {place}. It is {need.what}, from {need.source}. Expected layout: {need.layout}")


def _unlike(path: Path, need: Required, why: str) -> InputError:
    return InputError(f"{path} is not {need.what}: {why}. It comes from {need.source}. Expected layout: {need.layout}")


def picture(suite: str, data: Path | None, need: Required, name: str, folders: Sequence[str]) -> Image.Image:
    """Load a picture by its name as RGB, from the first of some folders of the data folder that has it.

    Raises:
        InputError: It is in none of them, its name leads out of them, or it cannot be read.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise InputError(f"{suite}: {name!r} is no name of a picture inside the data folder.")
    places = [data / folder / name for folder in folders] if data is not None else []
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"{suite}: the picture {name} is missing. {missing(suite, data, need)}")
    from lvlm_guard.request import picture_loading  # noqa: PLC0415 - slow to import

    try:
        return picture_loading.read_picture(path)
    except InputError as error:
        raise InputError(f"{suite}: {error}") from None


def _shown(values: Mapping[str, Any], key: str) -> str:
    return f"{values[key]!r:.60}" if key in values else "missing"
