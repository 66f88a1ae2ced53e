"""One model whose matrices are shared out among processes that torchrun started: all answer each unit, the first keeps it."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed

from lvlm_guard.bulk.pools import Answerer, OwnProcess, UnitAnswers, UnitFailure
from lvlm_guard.bulk.units import BulkUnit, RejectedLine
from lvlm_guard.errors import GuardError, InputError
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack

INSIDE = ("attention", "hidden", "readouts", "search", "finish")
"""Hooks that reach inside the layers, where a process has a share of the heads, or that run loops of their own."""


def read_rank(size: int) -> int:
    """Return the number of this process among those that share the model, counted from 0.

    Args:
        size: How many there should be.

    Raises:
        InputError: torchrun started another number of them, or was not used.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != size or "RANK" not in os.environ:
        raise InputError(
            f"--tp {size} takes {size} processes, and this is one of {started}. Start them with torchrun --standalone "
            f"--nproc-per-node {size} --no-python lvlm-guard generate-batch ... --tp {size}"
        )
    if os.environ.get("MASTER_PORT") == "0":
        raise InputError(
            "torchrun told its processes to meet at port 0, where they would wait for each other for ever. Start them with torchrun "
            "--standalone, or with a --master-port that is free."
        )
    return int(os.environ["RANK"])


def check_stack(stack: Stack) -> None:
    """Refuse strategies that were not compared where heads are shared out: all but those of branches and terms.

    Raises:
        InputError: A strategy of the stack has such a hook.
    """
    for strategy in stack:
        calls = StrategyCalls([strategy])
        hooks = [hook for hook in INSIDE if calls.active(hook)]
        if hooks:
            raise InputError(
                f"--tp: {calls.names[0]} uses {', '.join(hooks)}, which was not compared on a model whose heads are shared "
                "out. Use a stack of branches and terms, or --device-map."
            )


class LeadingProcess(OwnProcess):
    """The first process: it gives each unit to the others, and answers it with them.

    An error that all raise alike, before the model runs, leaves a unit out. Any other ends the job, since the processes would
    no longer be in step.

    Args:
        answerer: What it answers with.
    """

    def __init__(self, answerer: Answerer) -> None:
        super().__init__(answerer)
        self._in_step = True

    def submit(self, worker: int, unit: BulkUnit) -> None:
        """Answer the unit at once, together with the others."""
        _broadcast(unit)
        self._in_step = False
        self._events.append((worker, _answer_alike(self._answerer, unit)))
        self._in_step = True

    def close(self) -> None:
        """Let the others end, where they still listen; where they do not, torchrun ends them with this process."""
        if self._in_step:
            _broadcast(None)
            torch.distributed.destroy_process_group()


def follow(answerer: Answerer) -> None:
    """Answer what the first process answers, until it says that there is no more."""
    while (unit := _broadcast(None)) is not None:
        _answer_alike(answerer, unit)
    torch.distributed.destroy_process_group()


def _answer_alike(answerer: Answerer, unit: BulkUnit) -> UnitAnswers | UnitFailure:
    try:
        return UnitAnswers(tuple(answerer(unit)))
    except GuardError as error:
        return UnitFailure(RejectedLine.of_error(unit.line, error).reason)


def _broadcast(unit: BulkUnit | None) -> BulkUnit | None:
    """Return what the first process passes."""
    entries: list[Any] = [unit]
    torch.distributed.broadcast_object_list(entries, src=0)
    received: BulkUnit | None = entries[0]
    return received
