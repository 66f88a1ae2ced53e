"""The files of a report: a page, its figures as JSON and CSV, and an index where there are several answers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.diagnosis.answer.result import AnswerDiagnosis
from lvlm_guard.errors import InputError, quote
from lvlm_guard.files import check_name, exists, is_folder, write_whole

OUR_FILES = re.compile(r"(?:answer(?:-\d+)?\.(?:html|json|csv)|index\.html)")
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
    check_name(folder)
    if exists(folder) and not is_folder(folder):
        raise InputError(f"{quote(str(folder))} is a file: name a folder for the report.")
    if is_folder(folder):
        foreign = sorted(path.name for path in folder.iterdir() if OUR_FILES.fullmatch(path.name) is None)
        if foreign:
            raise InputError(
                f"{quote(str(folder))} holds something else ({foreign[0]!r}): name another folder, or a new one."
            )
        return
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{quote(str(folder))} cannot be made: {error.strerror}. Name another folder.") from error


def name_answer(number: int, count: int) -> str:
    """Return what the files of one of several answers are called, without their endings; counted from 0."""
    return "answer" if count == 1 else f"answer-{number + 1:0{len(str(count))}d}"


def write_figures(diagnosis: AnswerDiagnosis, folder: Path, name: str) -> None:
    """Write the figures of an answer as JSON and CSV.

    Raises:
        InputError: They cannot be written.
    """
    text = json.dumps(diagnosis.to_dict(), ensure_ascii=False, allow_nan=False)
    write_whole(folder / f"{name}.json", f"{text}\n".encode())
    write_whole(folder / f"{name}.csv", write_table(diagnosis).encode())


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


def remove_others(folder: Path, names: Sequence[str]) -> None:
    """Remove pages of an earlier report that this one does not write again.

    Raises:
        InputError: One cannot be removed.
    """
    for path in folder.iterdir():
        if OUR_FILES.fullmatch(path.name) and path.stem not in names:
            try:
                path.unlink()
            except OSError as error:
                raise InputError(
                    f"{quote(str(path))} of an earlier report cannot be removed: {error.strerror}."
                ) from error
