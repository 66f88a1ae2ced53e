"""Gives out units to workers: a unit of a worker that dies is given out again, unless it is what kills them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from lvlm_guard.bulk.pools import WorkerBroken, WorkerDeath, WorkerEvent, WorkerPool, WorkerResult
from lvlm_guard.errors import InputError

MOST_DEATHS = 3
"""Workers that may die at one unit, or one after the other in one place before they are ready."""


class NamedUnit(Protocol):
    """A unit of work."""

    @property
    def id(self) -> str:
        """Tells it from all others."""


Unit = TypeVar("Unit", bound=NamedUnit)


class Dispatch(Generic[Unit]):
    """One job on one pool.

    Args:
        pool: Workers; they are not ended here.
        keep: Gets what a worker says about a unit.
        lose: Gets a unit at which `MOST_DEATHS` workers died, and the last of these deaths.

    Attributes:
        replaced: Workers that died and were replaced.
    """

    def __init__(
        self,
        pool: WorkerPool[Unit],
        keep: Callable[[Unit, WorkerResult], None],
        lose: Callable[[Unit, WorkerDeath], None],
    ) -> None:
        self.replaced = 0
        self._pool, self._keep, self._lose = pool, keep, lose
        self._upcoming: deque[Unit] = deque()
        self._free: list[int] = []
        self._tasks: dict[int, Unit] = {}
        self._deaths: Counter[str] = Counter()
        self._false_starts: Counter[int] = Counter()

    def run(self, units: Iterator[Unit]) -> None:
        """Give out all units, which are read as workers become free, and wait for the last of them.

        Raises:
            InputError: Workers cannot begin, or one says that none can go on.
        """
        while self._give_out(units):
            for worker, event in self._pool.wait():
                self._handle(worker, event)

    def _give_out(self, units: Iterator[Unit]) -> bool:
        """Give units to free workers, and return whether there is anything to wait for."""
        while self._has_next(units) and self._free:
            worker = self._free.pop()
            self._tasks[worker] = self._upcoming.popleft()
            self._pool.submit(worker, self._tasks[worker])
        return bool(self._tasks or self._upcoming)

    def _has_next(self, units: Iterator[Unit]) -> bool:
        if not self._upcoming:
            self._upcoming.extend(islice(units, 1))
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
        if unit is not None and isinstance(event, WorkerResult):
            self._keep(unit, event)

    def _replace(self, worker: int, unit: Unit | None, death: WorkerDeath) -> None:
        """Start another worker, and give the unit of the dead one out again unless it is what kills them."""
        if unit is not None:
            self._deaths[unit.id] += 1
            if self._deaths[unit.id] < MOST_DEATHS:
                self._upcoming.appendleft(unit)
            else:
                self._lose(unit, death)
        elif worker in self._free:
            self._free.remove(worker)
        else:
            self._count_false_start(worker, death)
        self.replaced += 1
        self._pool.replace(worker)

    def _count_false_start(self, worker: int, death: WorkerDeath) -> None:
        self._false_starts[worker] += 1
        if self._false_starts[worker] == MOST_DEATHS:
            raise InputError(
                f"{MOST_DEATHS} workers died one after the other while they loaded the model; of the last, {death.cause}. "
                f"If the memory is too small for {self._pool.size} of them, use fewer --workers."
            )
