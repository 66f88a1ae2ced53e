"""Answers every unit of an input once, whatever becomes of the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from lvlm_guard.bulk.dispatching import MOST_DEATHS, Dispatch
from lvlm_guard.bulk.ledger import AnswerLedger
from lvlm_guard.bulk.pools import UnitAnswers, UnitFailure, WorkerDeath, WorkerPool, WorkerResult
from lvlm_guard.bulk.units import BulkUnit, RejectedLine


@dataclass
class BulkOutcome:
    """What became of a job: units that were answered now, units that had been before, and lines that were left out.

    Args:
        answered: Units that were answered now.
        before: Units that an earlier run had answered.
        replaced: Workers that died and were replaced.
        rejected: Lines that were left out, in their order.
    """

    answered: int = 0
    before: int = 0
    replaced: int = 0
    rejected: list[RejectedLine] = field(default_factory=list)


def answer_units(
    pool: WorkerPool[BulkUnit],
    units: Iterable[BulkUnit | RejectedLine],
    ledger: AnswerLedger,
    report_progress: Callable[[], object] = lambda: None,
) -> BulkOutcome:
    """Answer every unit that the ledger does not hold, and put the answers into the order of the input at the end.

    Args:
        pool: Workers; they are not ended here.
        units: In the order of the input; read as workers become free.
        ledger: Gets the answers.
        report_progress: Called after every line that no earlier run had answered.

    Returns:
        Counts, and the lines that were left out: those that cannot be read, those at which the model or a strategy raised,
        and those at which workers died.

    Raises:
        InputError: Workers cannot begin, or the answers cannot be written. Those that were kept stay.
    """
    job = _Job(ledger, report_progress)
    dispatch = Dispatch(pool, job.keep, job.lose)
    dispatch.run(job.select(units))
    outcome = job.outcome
    outcome.replaced = dispatch.replaced
    outcome.rejected.sort(key=lambda entry: entry.line)
    ledger.write_rejected([{"line": entry.line, "reason": entry.reason} for entry in outcome.rejected])
    ledger.sort()
    return outcome


class _Job:
    """Units of one input on their way to a ledger."""

    def __init__(self, ledger: AnswerLedger, report_progress: Callable[[], object]) -> None:
        self.outcome = BulkOutcome()
        self._ledger, self._report_progress = ledger, report_progress

    def select(self, units: Iterable[BulkUnit | RejectedLine]) -> Iterator[BulkUnit]:
        """Yield what is to be answered; the rest of the input is counted as it passes."""
        for unit in units:
            if isinstance(unit, RejectedLine):
                self._reject(unit)
            elif unit.id in self._ledger.finished:
                self.outcome.before += 1
            else:
                yield unit

    def keep(self, unit: BulkUnit, result: WorkerResult) -> None:
        """Keep what a worker says about a unit."""
        if isinstance(result, UnitFailure):
            self._reject(RejectedLine(unit.line, result.reason))
        elif isinstance(result, UnitAnswers):
            pairs = [{"question": q, "answer": a} for q, a in zip(unit.questions, result.texts, strict=True)]
            self._ledger.add({"id": unit.id, "line": unit.line, "answers": pairs})
            self.outcome.answered += 1
            self._report_progress()

    def lose(self, unit: BulkUnit, death: WorkerDeath) -> None:
        """Leave out a unit at which workers died."""
        self._reject(RejectedLine(unit.line, f"{MOST_DEATHS} workers died at it; of the last, {death.cause}"))

    def _reject(self, entry: RejectedLine) -> None:
        self.outcome.rejected.append(entry)
        self._report_progress()
