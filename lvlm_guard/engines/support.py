"""Which strategy runs in which engine: a table that comes from runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from lvlm_guard.files import write_whole

FILE = "support.json"
Status = Literal["equal", "differs", "refused", "failed", "not run"]


@dataclass(frozen=True)
class EngineRun:
    """What one strategy, at its defaults, did in one engine.

    Args:
        status: `equal` where every answer was that of `Guard` on transformers, token for token; `differs` where one was not.
        equal: Answers that were equal.
        answers: Answers that were compared.
        delta: Largest difference of the log-probability of a token from that of `Guard`, in nats.
        effect: Largest difference from plain generation's; where it is 0, the strategy did nothing to these requests.
        reason: Why it was refused, failed, or was not run.
    """

    status: Status
    equal: int = 0
    answers: int = 0
    delta: float = 0.0
    effect: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class SupportTable:
    """Runs by engine and strategy.

    Args:
        setup: What ran: model, dtype, machine, versions.
        engines: Runs by name of the strategy, by name of the engine.
    """

    setup: Mapping[str, str]
    engines: Mapping[str, Mapping[str, EngineRun]]

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain values."""
        engines = {engine: {name: asdict(runs[name]) for name in sorted(runs)} for engine, runs in self.engines.items()}
        return {"setup": dict(self.setup), "engines": engines}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SupportTable:
        """Return the table that `to_dict` wrote."""
        engines = {
            engine: {name: EngineRun(**run) for name, run in runs.items()} for engine, runs in values["engines"].items()
        }
        return cls(values["setup"], engines)


def load_support() -> SupportTable:
    """Return the table that comes with the library."""
    text = resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    return SupportTable.from_dict(json.loads(text))


def save_support(table: SupportTable, path: Path) -> None:
    """Write a table whole."""
    write_whole(path, (json.dumps(table.to_dict(), indent=1) + "\n").encode())
