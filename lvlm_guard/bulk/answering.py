"""One unit after the other: a picture is read once, and its questions are one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.bulk.ledger import AnswerLedger
from lvlm_guard.bulk.units import BulkUnit, RejectedLine
from lvlm_guard.guard import Guard
from lvlm_guard.request.picture_loading import read_picture


@dataclass
class BulkOutcome:
    """What became of a job: units that were answered now, units that had been before, and lines that were left out."""

    answered: int = 0
    before: int = 0
    rejected: list[RejectedLine] = field(default_factory=list)


def answer_units(
    guard: Guard,
    units: Iterable[BulkUnit | RejectedLine],
    ledger: AnswerLedger,
    settings: dict[str, Any],
    report_progress: Callable[[], object] = lambda: None,
) -> BulkOutcome:
    """Answer every unit that the ledger does not hold.

    Args:
        guard: The model and its stack.
        units: In any order.
        ledger: Gets the answers.
        settings: Of generate.
        report_progress: Called after every line of the input.

    Returns:
        Counts, and the lines that were left out: those that cannot be read, and those at which the model or a strategy raised.
    """
    outcome = BulkOutcome()
    for unit in units:
        if isinstance(unit, RejectedLine):
            outcome.rejected.append(unit)
        elif unit.id in ledger.finished:
            outcome.before += 1
        else:
            _answer(guard, unit, ledger, settings, outcome)
        report_progress()
    ledger.write_rejected([{"line": entry.line, "reason": entry.reason} for entry in outcome.rejected])
    return outcome


def _answer(guard: Guard, unit: BulkUnit, ledger: AnswerLedger, settings: dict[str, Any], outcome: BulkOutcome) -> None:
    try:
        answers = _ask(guard, unit, settings)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - pictures, models and strategies are foreign; the other units go on
        outcome.rejected.append(RejectedLine.of_error(unit.line, error))
        return
    pairs = [{"question": question, "answer": answer} for question, answer in zip(unit.questions, answers, strict=True)]
    ledger.add({"id": unit.id, "line": unit.line, "answers": pairs})
    outcome.answered += 1


def _ask(guard: Guard, unit: BulkUnit, settings: dict[str, Any]) -> list[str]:
    picture = read_picture(unit.image)
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
        for question in unit.questions
    ]
    answers: list[str] = guard.chat(conversations, **settings)
    return answers
