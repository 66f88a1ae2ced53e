"""Write the report of an answer, and the index of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lvlm_guard.diagnosis.answer.result import AnswerDiagnosis
from lvlm_guard.diagnosis.report.files import name_answer, prepare_folder, remove_others, write_figures
from lvlm_guard.diagnosis.report.page import render, render_index
from lvlm_guard.files import write_whole

INDEX = "index"


def write_report(diagnosis: AnswerDiagnosis, folder: Path, number: int = 0, count: int = 1) -> Path:
    """Write the page of an answer and its figures as JSON and CSV, each whole or not at all; return the page.

    Args:
        diagnosis: The diagnosis.
        folder: A new folder, or one that holds an earlier report.
        number: Which of several answers it is, counted from 0.
        count: How many there are.

    Raises:
        InputError: The folder holds something else, or cannot be written.
    """
    prepare_folder(folder)
    name = name_answer(number, count)
    write_figures(diagnosis, folder, name)
    page = folder / f"{name}.html"
    write_whole(page, render(diagnosis, f"{INDEX}.html" if count > 1 else None).encode())
    return page


def write_index(diagnoses: Sequence[AnswerDiagnosis], folder: Path) -> None:
    """Write the page that leads to several answers, where there are several, and remove what an earlier report left.

    Raises:
        InputError: It cannot be written.
    """
    names = [name_answer(number, len(diagnoses)) for number in range(len(diagnoses))]
    if len(names) > 1:
        write_whole(folder / f"{INDEX}.html", render_index(diagnoses, names).encode())
        names.append(INDEX)
    remove_others(folder, names)
