"""Gives out units to workers, and keeps each answer once: units of workers that die are given out again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from lvlm_guard.bulk.ledger import AnswerLedger
from lvlm_guard.bulk.pools import UnitAnswers, UnitFailure, WorkerBroken, WorkerDeath, WorkerEvent, WorkerPool
from lvlm_guard.bulk.units import BulkUnit, RejectedLine
from lvlm_guard.errors import InputError

MOST_DEATHS = 3
"""Workers that may die at one unit, or one after the other in one place before they are ready."""


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
    pool: WorkerPool,
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
    dispatch = _Dispatch(pool, ledger, report_progress)
    outcome = dispatch.run(units)
    outcome.rejected.sort(key=lambda entry: entry.line)
    ledger.write_rejected([{"line": entry.line, "reason": entry.reason} for entry in outcome.rejected])
    ledger.sort()
    return outcome


class _Dispatch:
    """One job on one pool."""

    def __init__(self, pool: WorkerPool, ledger: AnswerLedger, report_progress: Callable[[], object]) -> None:
        self._pool, self._ledger, self._report_progress = pool, ledger, report_progress
        self._outcome = BulkOutcome()
        self._upcoming: deque[BulkUnit] = deque()
        self._free: list[int] = []
        self._tasks: dict[int, BulkUnit] = {}
        self._deaths: Counter[str] = Counter()
        self._false_starts: Counter[int] = Counter()

    def run(self, units: Iterable[BulkUnit | RejectedLine]) -> BulkOutcome:
        waiting = self._select(units)
        while self._give_out(waiting):
            for worker, event in self._pool.wait():
                self._handle(worker, event)
        return self._outcome

    def _select(self, units: Iterable[BulkUnit | RejectedLine]) -> Iterator[BulkUnit]:
        """Yield what is to be answered; the rest of the input is counted as it passes."""
        for unit in units:
            if isinstance(unit, RejectedLine):
                self._reject(unit)
            elif unit.id in self._ledger.finished:
                self._outcome.before += 1
            else:
                yield unit

    def _give_out(self, waiting: Iterator[BulkUnit]) -> bool:
        """Give units to free workers, and return whether there is anything to wait for."""
        while self._has_next(waiting) and self._free:
            worker = self._free.pop()
            self._tasks[worker] = self._upcoming.popleft()
            self._pool.submit(worker, self._tasks[worker])
        return bool(self._tasks or self._upcoming)

    def _has_next(self, waiting: Iterator[BulkUnit]) -> bool:
        if not self._upcoming:
            self._upcoming.extend(islice(waiting, 1))
        return bool(self._upcoming)

    def _handle(self, worker: int, event: WorkerEvent) -> None:
        if isinstance(event, WorkerBroken):
            raise event.error
        unit = self._tasks.pop(worker, None)
        if isinstance(event, WorkerDeath):
            self._replace(worker, unit, event)
            return
        self._false_starts[worker] = 0
        self._free.append(worker)
        if unit is not None:
            self._keep(unit, event)

    def _replace(self, worker: int, unit: BulkUnit | None, death: WorkerDeath) -> None:
        """Start another worker, and give the unit of the dead one out again unless it is what kills them."""
        if unit is not None:
            self._deaths[unit.id] += 1
            if self._deaths[unit.id] < MOST_DEATHS:
                self._upcoming.appendleft(unit)
            else:
                self._reject(RejectedLine(unit.line, f"{MOST_DEATHS} workers died at it; of the last, {death.cause}"))
        elif worker in self._free:
            self._free.remove(worker)
        else:
            self._count_false_start(worker, death)
        self._outcome.replaced += 1
        self._pool.replace(worker)

    def _count_false_start(self, worker: int, death: WorkerDeath) -> None:
        self._false_starts[worker] += 1
        if self._false_starts[worker] == MOST_DEATHS:
            raise InputError(
                f"{MOST_DEATHS} workers died one after the other while they loaded the model; of the last, {death.cause}. "
                f"If the memory is too small for {self._pool.size} of them, use fewer --workers."
            )

    def _keep(self, unit: BulkUnit, event: WorkerEvent) -> None:
        if isinstance(event, UnitFailure):
            self._reject(RejectedLine(unit.line, event.reason))
        elif isinstance(event, UnitAnswers):
            pairs = [{"question": q, "answer": a} for q, a in zip(unit.questions, event.texts, strict=True)]
            self._ledger.add({"id": unit.id, "line": unit.line, "answers": pairs})
            self._outcome.answered += 1
            self._report_progress()

    def _reject(self, entry: RejectedLine) -> None:
        self._outcome.rejected.append(entry)
        self._report_progress()
