"""The input: a picture and its questions for each line or row; what cannot be used does not end the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.errors import InputError, quote, shorten
from lvlm_guard.files import is_file

FIELDS = ("id", "image", "question", "questions")
LONGEST_REASON = 300


@dataclass(frozen=True)
class BulkUnit:
    """A picture and its questions.

    Args:
        line: Line or row of the input, counted from 1.
        id: Tells it from all others; the number of its line where the input has none.
        image: The file of the picture, or what such a file holds.
        questions: At least one.
    """

    line: int
    id: str
    image: Path | bytes
    questions: tuple[str, ...]


@dataclass(frozen=True)
class RejectedLine:
    """A line of the input that cannot be answered, and why."""

    line: int
    reason: str

    @classmethod
    def of_error(cls, line: int, error: BaseException) -> RejectedLine:
        """Return the rejection that an error leads to."""
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        return cls(line, shorten(reason, LONGEST_REASON))


class UnitParser:
    """Makes units of the fields of lines, in order; an id that was there before is rejected.

    Args:
        folder: Where paths of pictures start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: dict[str, int] = {}

    def parse(self, number: int, values: Any) -> BulkUnit | RejectedLine:
        """Return the unit that a line holds, or what is wrong with it."""
        try:
            unit = self._read(number, values)
        except InputError as error:
            return RejectedLine.of_error(number, error)
        if unit.id in self._lines:
            return RejectedLine(number, f"the id {quote(unit.id)} is that of line {self._lines[unit.id]}")
        self._lines[unit.id] = number
        return unit

    def _read(self, number: int, values: Any) -> BulkUnit:
        if not isinstance(values, dict):
            raise InputError('a line is an object, {"image": ..., "questions": [...]}')
        unknown = [name for name in values if name not in FIELDS]
        if unknown:
            raise InputError(f"the field {quote(unknown[0])} is not known; those that are: {', '.join(FIELDS)}")
        return BulkUnit(
            number, _read_id(values, number), self._read_image(values.get("image")), _read_questions(values)
        )

    def _read_image(self, image: Any) -> Path | bytes:
        if isinstance(image, bytes) and image:
            return image
        if not isinstance(image, str) or not image:
            raise InputError(f"image is the path of a picture, got {quote(image)}")
        return self._folder / image


class LineReader:
    """Reads a JSONL file of units; paths of pictures start at its folder.

    Args:
        path: The file.

    Raises:
        InputError: There is no such file.
    """

    def __init__(self, path: Path) -> None:
        if not is_file(path):
            raise InputError(f"{path}: there is no such file.")
        self._path = path

    def measure(self) -> tuple[int, str]:
        """Return how many lines the input has that are not blank, and the digest of all of it."""
        count, digest = 0, hashlib.sha256()
        with self._path.open("rb") as file:
            for line in file:
                count += bool(line.strip())
                digest.update(line)
        return count, digest.hexdigest()

    def __iter__(self) -> Iterator[BulkUnit | RejectedLine]:
        """Yield every line that is not blank: as a unit, or as what is wrong with it."""
        parser = UnitParser(self._path.parent)
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse_line(parser, number, line)


def _parse_line(parser: UnitParser, number: int, line: bytes) -> BulkUnit | RejectedLine:
    try:
        values = json.loads(line, object_pairs_hook=_collect_pairs)
    except (ValueError, RecursionError) as error:
        return RejectedLine.of_error(number, error)
    return parser.parse(number, values)


def _collect_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; a field that stands there twice would silently be the last one."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the field {quote(twice)} stands there twice")
    return values


def _read_id(values: dict[str, Any], number: int) -> str:
    name = values.get("id", f"line {number}")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise InputError(f"id is a text or a whole number, got {quote(name)}")
    _check_unicode([str(name)])
    return str(name)


def _check_unicode(texts: list[str]) -> None:
    """Refuse halves of characters, which no file, tokenizer or table holds."""
    try:
        "".join(f"{text}\n" for text in texts).encode()
    except UnicodeEncodeError:
        raise InputError("an id or a question holds half a character, a lone surrogate") from None


def _read_questions(values: dict[str, Any]) -> tuple[str, ...]:
    if ("question" in values) == ("questions" in values):
        raise InputError("a line has either question or questions")
    questions = [values["question"]] if "question" in values else values["questions"]
    if not isinstance(questions, list) or not questions or not all(isinstance(text, str) for text in questions):
        raise InputError(f"questions is a list of texts, got {quote(questions)}")
    if not all(text.strip() for text in questions):
        raise InputError("a question is empty")
    _check_unicode(questions)
    return tuple(questions)
