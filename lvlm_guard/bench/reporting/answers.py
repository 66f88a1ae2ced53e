"""The answers of every system of a run, those of systems that are computed from other answers among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.running.store import Record
from lvlm_guard.bench.running.systems import BIAS, GREEDY
from lvlm_guard.bench.scoring.fitted_bias import BiasStrength, apply_fitted_bias

CALIBRATION = "calibration"
COMPUTED: Mapping[str, Any] = {
    "stack": [],
    "role": "control",
    "decoding": "computed from greedy's margins",
    "matched": [],
}
"""How the manifest of a run's results describes a system that was computed."""


@dataclass(frozen=True)
class SuiteAnswers:
    """The answers to one suite.

    Args:
        by_system: Answers by system, in the order of the run; computed systems last of the controls.
        bias: The strengths of the fitted bias; none where it was switched off.
    """

    by_system: Mapping[str, Sequence[AnsweredItem]]
    bias: Sequence[BiasStrength] = ()


def describe_systems(record: Record) -> dict[str, Any]:
    """Return every system as the manifest describes it, those that are computed among them: after the other controls."""
    systems = dict(record.manifest["systems"])
    if not _computes_bias(record):
        return systems
    controls = {name: entry for name, entry in systems.items() if entry["role"] == "control"}
    return {**controls, BIAS: COMPUTED, **{name: entry for name, entry in systems.items() if name not in controls}}


def read_suite_answers(record: Record, suite: str) -> SuiteAnswers:
    """Return the answers of every system to a suite; those of the fitted bias come from the margins of greedy.

    Raises:
        InputError: As for `Record.read_answers`.
    """
    if not _computes_bias(record):
        return SuiteAnswers({system: record.read_answers(system, suite) for system in record.systems})
    plain = record.read_answers(GREEDY, suite)
    calibration = _find_calibration(record, suite)
    pushed, strengths = apply_fitted_bias(plain, record.read_answers(GREEDY, calibration) if calibration else ())
    computed = {GREEDY: plain, BIAS: pushed}
    return SuiteAnswers(
        {
            system: computed[system] if system in computed else record.read_answers(system, suite)
            for system in describe_systems(record)
        },
        strengths,
    )


def _computes_bias(record: Record) -> bool:
    systems = record.manifest["systems"]
    return GREEDY in systems and BIAS not in systems and BIAS not in record.manifest["without"]


def _find_calibration(record: Record, suite: str) -> str | None:
    """Return the suite of the run that holds the calibration items of another one; None where there is none."""
    description = record.manifest["suites"][suite]
    return next(
        (
            name
            for name, candidate in record.manifest["suites"].items()
            if name != suite
            and candidate["name"] == description["name"]
            and candidate["arguments"].get("split") == CALIBRATION
        ),
        None,
    )
