"""The files of a report of answers: a page, its figures as JSON and CSV, and an index where there are several answers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lvlm_guard.diagnosis.answer.result import AnswerDiagnosis
from lvlm_guard.errors import InputError, quote
from lvlm_guard.files import DRAFT, check_name, exists, is_file, is_folder, write_whole

OUR_FILES = re.compile(r"(?:answer(?:-\d+)?\.(?:html|json|csv)|index\.html)")
OUR_DRAFTS = re.compile(rf"\.{OUR_FILES.pattern}\..*{re.escape(DRAFT)}")
"""Unfinished files, as a process leaves them that is killed."""
REQUEST = "request"
"""The entry of the JSON of an answer that says what was asked, so that the same need not be diagnosed again."""
COLUMNS = (
    "text", "start", "end", "level", "question", "doubt", "by", "is_doubtful", "margin", "log_probability", "entropy",
    "max_probability", "choice", "is_choice", "image_free_log_probability", "image_free_choice", "is_image_free_choice", "log_ratio",
    "evidence", "image_attention", "causes",
)  # fmt: skip


def prepare_folder(folder: Path) -> None:
    """Make the folder of a report, or check that it holds nothing but an earlier one.

    Raises:
        InputError: It is a file, holds something else, or cannot be made.
    """
    if is_folder(folder):
        foreign = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name))
        if foreign:
            raise InputError(
                f"{quote(str(folder))} holds something else ({foreign[0]!r}): name another folder, or a new one."
            )
        return
    make_folder(folder)


def make_folder(folder: Path) -> None:
    """Make a folder where there is none.

    Raises:
        InputError: It is a file, or cannot be made.
    """
    check_name(folder)
    if exists(folder) and not is_folder(folder):
        raise InputError(f"{quote(str(folder))} is a file: name a folder for the report.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{quote(str(folder))} cannot be made: {error.strerror}. Name another folder.") from error


@contextmanager
def opened_folder(folder: Path) -> Iterator[None]:
    """Prepare the folder of a report for the length of a block; a new one that is empty in the end, after an error, is removed.

    Raises:
        InputError: As `prepare_folder`.
    """
    is_new = not exists(folder)
    prepare_folder(folder)
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it holds a report
                folder.rmdir()


def _is_ours(name: str) -> bool:
    return OUR_FILES.fullmatch(name) is not None or OUR_DRAFTS.fullmatch(name) is not None


def name_answer(number: int, count: int) -> str:
    """Return what the files of one of several answers are called, without their endings; counted from 0."""
    return "answer" if count == 1 else f"answer-{number + 1:0{len(str(count))}d}"


def write_figures(diagnosis: AnswerDiagnosis, folder: Path, name: str, request: str = "") -> None:
    """Write the figures of an answer as CSV, then as JSON.

    Args:
        diagnosis: The diagnosis.
        folder: Where.
        name: What the files are called, without their endings.
        request: A digest of what was asked; empty where it is not kept.

    Raises:
        InputError: They cannot be written.
    """
    write_whole(folder / f"{name}.csv", write_table(diagnosis).encode())
    values = {**diagnosis.to_dict(), **({REQUEST: request} if request else {})}
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    write_whole(folder / f"{name}.json", f"{text}\n".encode())


def read_figures(folder: Path, name: str) -> dict[str, Any]:
    """Return the figures of an answer as its JSON holds them.

    Raises:
        InputError: They cannot be read.
    """
    path = folder / f"{name}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{quote(str(path))} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{quote(str(path))} holds no figures of an answer.")
    return values


def holds_report(folder: Path, name: str, request: str) -> bool:
    """Whether the whole report of an answer is there, of this very request. The JSON is written last."""
    if not all(is_file(folder / f"{name}.{ending}") for ending in ("json", "csv", "html")):
        return False
    try:
        return read_figures(folder, name).get(REQUEST) == request
    except InputError:
        return False


def write_table(diagnosis: AnswerDiagnosis) -> str:
    """Return the words as CSV with all figures."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for word in diagnosis.words:
        values: dict[str, Any] = word.to_dict()
        values |= {"start": word.span[0], "end": word.span[1], "causes": "; ".join(cause.name for cause in word.causes)}
        writer.writerow([_guard_cell(values[column]) for column in COLUMNS])
    return text.getvalue()


def _guard_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def remove_figures(folder: Path, name: str) -> None:
    """Remove the JSON of an earlier report of an answer, before its page is replaced: its JSON is what says that a report is whole.

    Raises:
        InputError: It cannot be removed.
    """
    _remove(folder / f"{name}.json")


def remove_others(folder: Path, names: Sequence[str]) -> None:
    """Remove pages of an earlier report that this one does not write again, and what a killed process left unfinished.

    Raises:
        InputError: One cannot be removed.
    """
    for path in folder.iterdir():
        if _is_ours(path.name) and path.stem not in names:
            _remove(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{quote(str(path))} of an earlier report cannot be removed: {error.strerror}.") from error
