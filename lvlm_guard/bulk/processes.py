"""Workers as processes of this machine, each with a pipe to the one that gives out units."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Protocol, TypeVar

from lvlm_guard.bulk.pools import WorkerBroken, WorkerDeath, WorkerEvent, WorkerReady, WorkerResult, answer_unit
from lvlm_guard.errors import GuardError, InputError, describe_error

END_SECONDS = 5.0


Unit = TypeVar("Unit")
Worker_co = TypeVar("Worker_co", covariant=True)


class WorkerSource(Protocol[Worker_co]):
    """Makes what works in a process; it travels there as a pickle."""

    def build(self, worker: int, workers: int) -> Worker_co:
        """Return what works in one of several workers, counted from 0."""


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection


class ProcessPool(Generic[Unit]):
    """Processes that answer units.

    Args:
        source: Makes the answerer in each of them.
        size: How many.
        answer: Answers a unit with what the source made; a function that has a name.
    """

    def __init__(
        self,
        source: WorkerSource[Any],
        size: int,
        answer: Callable[[Any, Unit], WorkerResult | WorkerBroken] = answer_unit,  # type: ignore[assignment] # of pictures
    ) -> None:
        self.size = size
        self._source, self._answer = source, answer
        self._context = multiprocessing.get_context("spawn")  # a fork would share the threads and devices of torch
        self._workers: list[_Worker] = []
        try:
            for worker in range(size):
                self._workers.append(self._start(worker))
        except BaseException:
            self.close()
            raise

    def _start(self, worker: int) -> _Worker:
        pipe, far_end = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(far_end, self._source, worker, self.size, self._answer), daemon=True
        )
        process.start()
        far_end.close()  # so that the pipe ends with the worker
        return _Worker(process, pipe)

    def submit(self, worker: int, unit: Unit) -> None:
        """Send a unit; a worker that has died takes it with it, and `wait` says so."""
        try:
            self._workers[worker].pipe.send(unit)
        except OSError:
            return

    def wait(self) -> list[tuple[int, WorkerEvent]]:
        """Wait until a worker says something or dies."""
        handles: dict[Connection | int, int] = {}
        for number, worker in enumerate(self._workers):
            handles[worker.pipe] = handles[worker.process.sentinel] = number
        ready = {handles[handle] for handle in wait(list(handles))}  # type: ignore[index]
        return [(number, self._read(self._workers[number])) for number in sorted(ready)]

    def _read(self, worker: _Worker) -> WorkerEvent:
        """Return what a worker said last, or that it is gone: what it said before it died counts."""
        try:
            if worker.pipe.poll():
                event: WorkerEvent = worker.pipe.recv()
                return event
        except (EOFError, OSError):
            worker.process.join(END_SECONDS)
        _end(worker.process)
        return WorkerDeath(_describe_end(worker.process.exitcode))

    def replace(self, worker: int) -> None:
        """Start another process with the number of a dead one."""
        self._workers[worker].pipe.close()
        self._workers[worker] = self._start(worker)

    def close(self) -> None:
        """End all processes; those at work lose their unit."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(END_SECONDS)
            _end(worker.process)


def _end(process: SpawnProcess) -> None:
    if process.is_alive():
        process.kill()
    process.join()


def _describe_end(code: int | None) -> str:
    if code is None or code >= 0:
        return f"it ended with {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"


def _work(
    pipe: Connection, source: WorkerSource[Any], worker: int, workers: int, answer: Callable[[Any, Any], Any]
) -> None:
    """Answer units until the pipe ends, as it does when the other process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that gave out the units ends this one
    try:
        answerer = source.build(worker, workers)
    except GuardError as error:
        pipe.send(WorkerBroken(error))
        return
    except Exception as error:  # noqa: BLE001 - models are foreign, and none of the workers could load this one
        pipe.send(WorkerBroken(InputError(f"The workers cannot begin: {describe_error(error)}")))
        return
    try:
        pipe.send(WorkerReady())
        while True:
            pipe.send(answer(answerer, pipe.recv()))
    except (EOFError, OSError):
        return
