"""The reports of several answers, one after the other: each is written and dropped, and one that is there is not made again."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import InputError, quote

if TYPE_CHECKING:
    from lvlm_guard.diagnosis.answer.result import AnswerDiagnosis
    from lvlm_guard.guard import Guard

PIECE = 2**20
"""Bytes of a file that are digested at once."""
DIGITS = 16


@dataclass(frozen=True)
class QuestionedAnswer:
    """One answer to diagnose.

    Args:
        pictures: Paths, or PIL pictures.
        prompt: The question.
        answer: The answer; None is the model's own.
        opened: The pictures as PIL, where they are open already, so that large ones are not decoded again.
    """

    pictures: tuple[Any, ...]
    prompt: str
    answer: str | None = None
    opened: tuple[Any, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class AnswerReports:
    """Reports of answers in one folder.

    Args:
        guard: The guarded model.
        questions: The answers.
        out: The folder.
        settings: Arguments of `diagnose_answer`.
        files: Files among the settings, whose content decides too.
    """

    guard: Guard
    questions: Sequence[QuestionedAnswer]
    out: Path
    settings: Mapping[str, Any]
    files: Sequence[Path | None] = ()

    def write(self, show: Callable[[AnswerDiagnosis], None]) -> int:
        """Diagnose what is not there yet, write each report as soon as it is there, and the index at the end.

        One diagnosis is held at a time. Of several answers, those whose reports are in the folder already, made of the same model,
        picture, question and settings, are not diagnosed again.

        Args:
            show: Called with each diagnosis in turn; those that were there have no maps.

        Returns:
            How many reports were there.
        """
        from lvlm_guard.diagnosis.report.writing import write_index  # noqa: PLC0415 - slow to import

        self.check_texts()
        shared = self._describe()
        numbers = range(len(self.questions))
        done_before = 0
        for number in numbers:
            done_before += self._write(number, shared, show)
            gc.collect()  # a page's template leaves a circle behind, which holds the pictures
        write_index((self._read(number) for number in numbers), self.out, len(self.questions), self._find_model_page())
        return done_before

    def check_texts(self) -> None:
        """Check that every answer that was passed survives the model's tokens, before any is diagnosed.

        Raises:
            InputError: One does not; names it.
        """
        from lvlm_guard.diagnosis.answer.forcing import read_answer  # noqa: PLC0415 - slow to import

        processor = self.guard.processor
        for number, question in enumerate(self.questions):
            if question.answer is not None:
                with self._named(number):
                    read_answer(getattr(processor, "tokenizer", processor), question.answer)

    def _write(self, number: int, shared: Mapping[str, Any], show: Callable[[AnswerDiagnosis], None]) -> bool:
        """Write one report; return whether it was there."""
        from lvlm_guard.diagnosis.report import files, writing  # noqa: PLC0415 - slow to import

        request, count = digest_request(self.questions[number], shared), len(self.questions)
        if count > 1 and files.holds_report(self.out, files.name_answer(number, count), request):
            show(self._read(number))
            return True
        diagnosis = self._diagnose(number)
        writing.write_report(diagnosis, self.out, number, count, request, self._find_model_page())
        show(diagnosis)
        return False

    def _diagnose(self, number: int) -> AnswerDiagnosis:
        from lvlm_guard.diagnosis.answer.diagnosing import diagnose_answer  # noqa: PLC0415 - slow to import

        question = self.questions[number]
        with _progress(number, len(self.questions)) as watch, self._named(number):
            return diagnose_answer(
                self.guard,
                list(question.opened or question.pictures),
                question.prompt,
                answer=question.answer,
                watch=watch,
                **self.settings,
            )

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        """Say of which of several answers an error is."""
        try:
            yield
        except InputError as error:
            if len(self.questions) == 1:
                raise
            raise InputError(f"Answer {number + 1} of {len(self.questions)}: {error}") from error

    def _read(self, number: int) -> AnswerDiagnosis:
        """Return what was written of an answer, without its maps, and with its first picture."""
        from lvlm_guard.diagnosis.answer.result import read_diagnosis  # noqa: PLC0415 - slow to import
        from lvlm_guard.diagnosis.report import files  # noqa: PLC0415 - as above

        values = files.read_figures(self.out, files.name_answer(number, len(self.questions)))
        return read_diagnosis(values, (_read_small(self.questions[number].pictures[0]),))

    def _describe(self) -> dict[str, Any]:
        """Return what decides every diagnosis."""
        from lvlm_guard.bench.running.manifest import model_identity, versions  # noqa: PLC0415 - slow to import

        return {
            "model": model_identity(self.guard.model),
            "stack": self.guard.stack.to_dict(),
            "versions": versions(),
            "settings": dict(self.settings),
            "files": [None if path is None else _digest_file(path) for path in self.files],
            "model_page": self._find_model_page(),
        }

    def _find_model_page(self) -> str | None:
        """Return the address of the page that stands beside the diagnosis of the model, if one was passed."""
        from lvlm_guard.diagnosis.report.writing import find_model_page  # noqa: PLC0415 - slow to import

        return find_model_page(self.settings.get("model_diagnosis"), self.out)


@contextmanager
def _progress(number: int, count: int) -> Iterator[Any]:
    """Show what runs next on stderr."""
    from rich.console import Console  # noqa: PLC0415 - only for this

    with Console(stderr=True).status("") as status:
        yield lambda stage: status.update(f"answer {number + 1} of {count}: {stage}")


def _read_small(picture: Any) -> Any:
    """Return a picture to be shown in the index, which need not have all of its pixels."""
    from lvlm_guard.diagnosis.report.drawing import LONGEST  # noqa: PLC0415 - slow to import
    from lvlm_guard.request.picture_sources import open_path  # noqa: PLC0415 - as above

    return open_path(picture, least=LONGEST) if isinstance(picture, Path) else picture


def digest_request(question: QuestionedAnswer, shared: Mapping[str, Any]) -> str:
    """Return a digest of all that a diagnosis depends on: the pictures as they are now, the texts, and what is shared.

    Raises:
        InputError: A picture can no longer be read.
    """
    pictures = [_digest_picture(picture) for picture in question.pictures]
    values = {**shared, "pictures": pictures, "prompt": question.prompt, "answer": question.answer}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]


def _digest_picture(picture: Any) -> str:
    if isinstance(picture, Path):
        return _digest_file(picture)
    from lvlm_guard.request.picture_digests import digest_levels  # noqa: PLC0415 - slow to import

    return digest_levels(picture, f"{picture.mode}{picture.size}")


def _digest_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except OSError as error:
        raise InputError(f"{quote(str(path))} can no longer be read: {error.strerror}.") from error
    return digest.hexdigest()
