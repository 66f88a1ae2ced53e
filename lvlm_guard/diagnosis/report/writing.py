"""Write the report of an answer, the index of several, and the report of a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote as quote_address

from lvlm_guard.diagnosis.answer.result import AnswerDiagnosis
from lvlm_guard.diagnosis.model.words import write_rows
from lvlm_guard.diagnosis.report.files import (
    make_folder,
    name_answer,
    prepare_folder,
    remove_figures,
    remove_others,
    write_figures,
)
from lvlm_guard.diagnosis.report.model_page import render_model
from lvlm_guard.diagnosis.report.page import render, render_index
from lvlm_guard.diagnosis.verdict import Diagnosis
from lvlm_guard.files import is_file, write_pieces, write_whole

INDEX = "index"
MODEL = "diagnosis"
"""What the page of a model and its JSON are called, without their endings."""


def write_report(
    diagnosis: AnswerDiagnosis,
    folder: Path,
    number: int = 0,
    count: int = 1,
    request: str = "",
    model_page: str | None = None,
) -> Path:
    """Write the page of an answer and its figures as JSON and CSV, each whole or not at all; return the page.

    Args:
        diagnosis: The diagnosis.
        folder: A new folder, or one that holds an earlier report.
        number: Which of several answers it is, counted from 0.
        count: How many there are.
        request: A digest of what was asked, which the JSON keeps; empty keeps none.
        model_page: Address of the page of the model's diagnosis, which the page leads to; None leads nowhere.

    Raises:
        InputError: The folder holds something else, or cannot be written.
    """
    prepare_folder(folder)
    name = name_answer(number, count)
    page = folder / f"{name}.html"
    remove_figures(folder, name)
    write_whole(page, render(diagnosis, f"{INDEX}.html" if count > 1 else None, model_page).encode())
    write_figures(diagnosis, folder, name, request)
    return page


def write_index(diagnoses: Iterable[AnswerDiagnosis], folder: Path, count: int, model_page: str | None = None) -> None:
    """Write the page that leads to several answers, where there are several, and remove what an earlier report left.

    Args:
        diagnoses: The answers in their order; one at a time is held. Their maps are not looked at.
        folder: The folder of their reports.
        count: How many there are.
        model_page: As in `write_report`.

    Raises:
        InputError: It cannot be written.
    """
    names = [name_answer(number, count) for number in range(count)]
    if count > 1:
        pieces = render_index(zip(names, diagnoses, strict=True), count, model_page)
        write_pieces(folder / f"{INDEX}.html", _encode(pieces))
    remove_others(folder, [*names, INDEX] if count > 1 else names)


def write_model_report(diagnosis: Diagnosis, folder: Path) -> Path:
    """Write the page of a model's diagnosis, its components as CSV and all of it as JSON, each whole or not at all; return the page.

    Other files of the folder stay as they are. The JSON is written last: where it is there, the report is whole.

    Args:
        diagnosis: The diagnosis of a whole model.
        folder: The folder; made if it is not there.

    Raises:
        InputError: It is a verdict on words, its evidence holds what JSON does not, or the folder cannot be written.
    """
    page, figures = render_model(diagnosis).encode(), diagnosis.to_json().encode()
    make_folder(folder)
    remove_figures(folder, MODEL)
    write_whole(folder / f"{MODEL}.html", page)
    write_whole(folder / "components.csv", write_rows(diagnosis).encode())
    write_whole(folder / f"{MODEL}.json", figures)
    return folder / f"{MODEL}.html"


def find_model_page(figures: Path | None, folder: Path) -> str | None:
    """Return the address, seen from a folder of answers, of the page beside the JSON of a model's diagnosis; None without one."""
    page = None if figures is None else figures.with_suffix(".html")
    if page is None or not is_file(page):
        return None
    try:
        return quote_address(Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix())
    except ValueError:  # on another drive, to which no relative path leads
        return page.resolve().as_uri()


def _encode(pieces: Iterable[str]) -> Iterator[bytes]:
    return (piece.encode() for piece in pieces)
