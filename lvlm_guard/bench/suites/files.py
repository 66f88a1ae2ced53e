"""Read the files of suites, row by row with line numbers: JSON Lines, JSON arrays and whole documents."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.suite import Loaded, Problem, Required
from lvlm_guard.bench.suites.impostors import HEAD, recognise
from lvlm_guard.errors import InputError, quote
from lvlm_guard.files import exists, is_file, is_folder

_BETWEEN = re.compile(r"[\s,]*")
_BROKEN_JSON = (ValueError, RecursionError)
_LONGEST_ID = 18
_LONGEST_NAME = 255
"""Bytes of the longest name of a file."""
_LONGEST_PATH = 1000
"""Characters of the longest path below the data folder."""
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
        value: Any = self.values.get(key)
        if not _is_text(value) or not value.strip():
            raise BadRow(f"{key!r} should be a text, and is {_shown(self.values, key)}")
        text: str = value
        return text

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
        if not isinstance(value, list) or not all(_is_text(element) for element in value):
            raise BadRow(f"{key!r} should be a list of texts, and is {_shown(self.values, key)}")
        return list(value)

    def picture(self, key: str) -> str:
        """Return the name of a picture, which must lead to a file inside the data folder."""
        return check_picture_name(self.text(key))

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
        InputError: It cannot be opened, or is what a failed download leaves.
    """
    if is_folder(path):
        raise InputError(f"{path} is a folder, and should be a file.")
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}.") from error
    head = content[:HEAD]
    if head.strip() and (instead := recognise(head)) is not None:
        raise InputError(f"{path} is {instead}.")
    return content


def parse_json(text: str) -> Any:
    """Return a JSON value.

    Raises:
        ValueError: It is none, holds NaN or infinity, or an object has a key twice.
        RecursionError: It is too deep.
    """
    return _DECODER.decode(text)


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise ValueError(f"the key {quote(twice)} occurs twice in one object")
    return built


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_build_object, parse_constant=_refuse_constant)


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
        return parse_json(read_text(path, need))
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
        value = parse_json(line.decode("utf-8"))
    except _BROKEN_JSON as error:
        return Problem(file, number, f"no JSON: {error}")
    return FileRow(file, number, value) if isinstance(value, dict) else Problem(file, number, "no JSON object")


def _of_array(content: bytes, path: Path) -> Iterator[FileRow | Problem]:
    try:
        text = content.decode("utf-8").lstrip()
    except UnicodeDecodeError as error:
        yield Problem(path.name, 1 + content.count(b"\n", 0, error.start), f"not UTF-8: {error.reason}")
        return
    at, counted_to, line = 1, 0, 1 + content[: len(content) - len(content.lstrip())].count(b"\n")
    while True:
        gap = _BETWEEN.match(text, at)
        at = gap.end() if gap else at
        line, counted_to = line + text.count("\n", counted_to, at), at
        if text[at : at + 1] == "]":
            return
        try:
            value, at = _DECODER.raw_decode(text, at)
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
            if exists(path):
                return path
    raise missing(suite, data, need)


def missing(suite: str, data: Path | None, need: Required) -> InputError:
    """Build the error for something required that is not there."""
    return InputError(
        f"{suite}: {_absence(suite, data, need)}. It is {need.what}, from {need.source}. Expected layout: {need.layout}"
    )


def _absence(suite: str, data: Path | None, need: Required) -> str:
    if data is None:
        return f"{suite} needs a data folder with {need.path}"
    file = next((place for place in (data / need.path).parents if is_file(place)), None)
    return f"{file} is a file, not a folder that holds {need.path}" if file else f"{data / need.path} does not exist"


def _unlike(path: Path, need: Required, why: str) -> InputError:
    return InputError(f"{path} is not {need.what}: {why}. It comes from {need.source}. Expected layout: {need.layout}")


def check_picture_name(name: str) -> str:
    """Return a name that leads to a file inside the folder where it is looked for, on any system.

    Raises:
        BadRow: It does not.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    leaves = posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts)
    fits = len(name) <= _LONGEST_PATH and all(
        len(part.encode("utf-8", "replace")) <= _LONGEST_NAME for part in posix.parts
    )
    if leaves or not posix.parts or "\0" in name or not fits:
        raise BadRow(f"{quote(name)} is no name of a picture inside the data folder")
    return name


def _is_text(value: Any) -> bool:
    """Return whether a value is a text without half a surrogate pair, which UTF-8 cannot encode."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def _shown(values: Mapping[str, Any], key: str) -> str:
    return quote(values[key], 60) if key in values else "missing"
