"""What a pool of workers is, wherever they are: each answers one unit at a time, and may die."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lvlm_guard.bulk.units import BulkUnit, RejectedLine

Answerer = Callable[[BulkUnit], list[str]]
"""Returns the answers to the questions of a unit, in their order."""


class AnswererSource(Protocol):
    """Makes an answerer in the process that uses it; it travels there as a pickle."""

    def build(self, worker: int, workers: int) -> Answerer:
        """Return the answerer of one of several workers, counted from 0."""


@dataclass(frozen=True)
class WorkerReady:
    """A worker can take units."""


class WorkerResult:
    """What a worker says about its unit; it is free for the next one."""


@dataclass(frozen=True)
class UnitAnswers(WorkerResult):
    """A worker answered its unit."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class UnitFailure(WorkerResult):
    """A worker could not answer its unit, and goes on."""

    reason: str


@dataclass(frozen=True)
class WorkerBroken:
    """A worker cannot begin or go on, and no other could either: what it raised."""

    error: Exception


@dataclass(frozen=True)
class WorkerDeath:
    """A worker is gone, and its unit with it."""

    cause: str


WorkerEvent = WorkerReady | WorkerResult | WorkerBroken | WorkerDeath
Unit_contra = TypeVar("Unit_contra", contravariant=True)


class WorkerPool(Protocol[Unit_contra]):
    """Workers by number, counted from 0, each loading, free, at work or dead."""

    size: int

    def submit(self, worker: int, unit: Unit_contra) -> None:
        """Give a unit to a free worker."""

    def wait(self) -> list[tuple[int, WorkerEvent]]:
        """Wait until something happens to a worker that is loading or at work."""

    def replace(self, worker: int) -> None:
        """Put a new worker in the place of a dead one."""

    def close(self) -> None:
        """End all workers, whatever they do."""


def answer_unit(answerer: Answerer, unit: BulkUnit) -> UnitAnswers | UnitFailure:
    """Return the answers to a unit, or why there are none.

    Raises:
        MemoryError: The machine is too small.
    """
    try:
        return UnitAnswers(tuple(answerer(unit)))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - pictures, models and strategies are foreign; the other units go on
        return UnitFailure(RejectedLine.of_error(unit.line, error).reason)


class OwnProcess:
    """The calling process as the only worker.

    Args:
        answerer: What it answers with.
    """

    size = 1

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._events: list[tuple[int, WorkerEvent]] = [(0, WorkerReady())]

    def submit(self, worker: int, unit: BulkUnit) -> None:
        """Answer the unit at once."""
        self._events.append((worker, answer_unit(self._answerer, unit)))

    def wait(self) -> list[tuple[int, WorkerEvent]]:
        """Return what has happened since the last call."""
        events, self._events = self._events, []
        return events

    def replace(self, worker: int) -> None:
        """Is never called: the only worker dies with its caller."""

    def close(self) -> None:
        """Nothing ends but the work itself."""
