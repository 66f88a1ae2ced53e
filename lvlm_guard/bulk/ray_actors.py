"""Workers as actors of Ray, on this machine or on those of a cluster."""

from __future__ import annotations

import os
from typing import Any

from lvlm_guard.bulk.pools import (
    AnswererSource,
    UnitAnswers,
    UnitFailure,
    WorkerBroken,
    WorkerDeath,
    WorkerEvent,
    WorkerReady,
    answer_unit,
)
from lvlm_guard.bulk.units import BulkUnit
from lvlm_guard.errors import GuardError, InputError, describe_error, quote, shorten
from lvlm_guard.extras import import_extra

LOCAL = "local"
LONGEST_CAUSE = 200


def connect(address: str) -> Any:
    """Return `ray`, connected.

    Args:
        address: `local` begins a cluster of this machine alone, `auto` finds one that runs here, others are what Ray takes.

    Raises:
        InputError: Ray is not installed, or cannot be reached.
    """
    ray = import_extra("ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is begun here reports to nobody
    try:
        ray.init(address=address, include_dashboard=False if address == LOCAL else None, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--ray {address}: Ray cannot be reached: {quote(str(error), LONGEST_CAUSE)}.") from error
    return ray


class RayPool:
    """Actors that answer units. One that dies is not restarted by Ray, so that its unit is given out by one side only.

    Args:
        source: Makes the answerer in each of them; what it names must be there on every machine.
        size: How many; those for which the cluster has no room wait, and the others go on.
        address: See `connect`.
        gpus: GPUs of an actor; None is one where the cluster has any.

    Raises:
        InputError: Ray is not installed, or cannot be reached.
    """

    def __init__(self, source: AnswererSource, size: int, address: str = LOCAL, gpus: float | None = None) -> None:
        self.size = size
        self._ray = connect(address)
        self._source = source
        if gpus is None:
            gpus = float(bool(self._ray.cluster_resources().get("GPU")))
        settings = {"max_restarts": 0, "max_task_retries": 0, "num_cpus": 1, "num_gpus": gpus}
        self._actor_class = self._ray.remote(**settings)(AnsweringActor)
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, int] = {}
        for worker in range(size):
            self.replace(worker)

    def submit(self, worker: int, unit: BulkUnit) -> None:
        """Send a unit to an actor."""
        self._pending[self._actors[worker].answer.remote(unit)] = worker

    def wait(self) -> list[tuple[int, WorkerEvent]]:
        """Wait until an actor returns or is gone."""
        (reference, *_), _ = self._ray.wait(list(self._pending), num_returns=1)
        worker = self._pending.pop(reference)
        try:
            event: WorkerEvent = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(self._actors[worker])  # where it only went out of reach, it must not come back
            event = WorkerDeath(shorten(describe_error(error).split("\n")[0], LONGEST_CAUSE))
        return [(worker, event)]

    def replace(self, worker: int) -> None:
        """Begin another actor with the number of a dead one."""
        self._actors[worker] = self._actor_class.remote()
        self._pending[self._actors[worker].prepare.remote(self._source, worker, self.size)] = worker

    def close(self) -> None:
        """End all actors, and the cluster where it was begun for them."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()


class AnsweringActor:
    """What answers units in a process of Ray."""

    def prepare(self, source: AnswererSource, worker: int, workers: int) -> WorkerReady | WorkerBroken:
        """Load the model."""
        try:
            self._answerer = source.build(worker, workers)
        except GuardError as error:
            return WorkerBroken(error)
        return WorkerReady()

    def answer(self, unit: BulkUnit) -> UnitAnswers | UnitFailure:
        """Answer a unit."""
        return answer_unit(self._answerer, unit)
