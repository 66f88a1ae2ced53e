"""Bench runs over drawn scenes: greedy generation beside some stacks, no other controls."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.running import runner, systems
from lvlm_guard.bench.running.manifest import RunPlan, SuiteChoice
from lvlm_guard.bench.running.store import Record
from lvlm_guard.errors import Refused
from lvlm_guard.host.stack import Stack
from lvlm_guard.testbed.suite import PARSER, Scenes

BATCH = 32
"""Most prompts of a call."""

Answers = Mapping[str, Mapping[str, Sequence[AnsweredItem]]]
"""Raw answers by suite and system."""


def build_plan(suites: Mapping[str, Scenes], stacks: Mapping[str, Stack], *, batch: int = BATCH) -> RunPlan:
    """Build the plan of a run with greedy generation and the stacks.

    Args:
        suites: Suites by the name they have in the run.
        stacks: Stacks by the name they have in the run.
        batch: Most prompts of a call.

    Raises:
        InputError: The name of a stack cannot be that of a file, or is "greedy".
    """
    switched_off = tuple(name for name in systems.CONTROLS if name != systems.GREEDY)
    chosen = {name: SuiteChoice(suite, PARSER, _arguments(suite)) for name, suite in suites.items()}
    return RunPlan(chosen, systems.build_systems(stacks, switched_off), switched_off, batch=batch)


def _arguments(suite: Scenes) -> dict[str, Any]:
    arguments = {field.name: getattr(suite, field.name) for field in dataclasses.fields(suite)}
    return {name: value for name, value in arguments.items() if value is not None}


def answer(
    model: Any,
    processor: Any,
    suites: Mapping[str, Scenes],
    stacks: Mapping[str, Stack] | None = None,
    *,
    batch: int = BATCH,
    progress: bool = True,
) -> Answers:
    """Answer suites and return the raw answers; no folder is left behind.

    Args:
        model: The model.
        processor: Its processor, with a chat template.
        suites: Suites by name.
        stacks: Stacks by name, beside greedy generation, which always answers.
        batch: Most prompts of a call.
        progress: Whether to show a bar in a terminal.

    Raises:
        InputError: As for `runner.run`.
        Refused: A stack could not answer.
    """
    plan = build_plan(suites, stacks or {}, batch=batch)
    with tempfile.TemporaryDirectory() as folder:
        record = runner.run(plan, model, processor, Path(folder), model_id=type(model).__name__, progress=progress)
        check_refusals(record)
        return {
            suite: {system: record.read_answers(system, suite) for system in record.systems} for suite in record.suites
        }


def check_refusals(record: Record) -> None:
    """Check that every system answered.

    Raises:
        Refused: One could not; the message holds its own reason.
    """
    for suite in record.suites:
        for system in record.systems:
            if (refusal := record.refusal(system, suite)) is not None:
                raise Refused(f"{system} cannot answer {suite} ({refusal.error}): {refusal.reason}")
