"""What a tuning folder keeps: its settings and every finished trial, so that a search goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_guard.bench import files
from lvlm_guard.bench.running.sealing import Ledger
from lvlm_guard.errors import InputError, quote
from lvlm_guard.files import check_name, exists, is_folder

SETTINGS, TRIALS, LOCK = "settings.json", "trials.jsonl", "lock"
FORMAT = 1

FINISHED = "finished"
OVER_BUDGET, REFUSED, WEAK, NAMES_LESS = "over budget", "refused", "weak", "names less"
"""How a trial ends: only one that is finished can be chosen. A weak one was given up after the first items."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Args:
        number: From 0.
        choices: What the sampler chose, by its own names.
        entries: The stack.
        state: How it ended.
        reason: Why it cannot be chosen; empty where it can.
        scores: Scores by part, and recall.
        gains: Gains by part over plain generate: value, low, high.
        gain: The mean of the gains.
        error: About the standard error of that mean.
        first_gain: The mean gain on the first items; None where it never ran.
        cost: Forward-equivalents: prefill, decode, whole, and the clock; predicted ones where it never ran.
    """

    number: int
    choices: Mapping[str, Any]
    entries: tuple[Mapping[str, Any], ...]
    state: str
    reason: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    gains: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    gain: float = 0.0
    error: float = 0.0
    first_gain: float | None = None
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether it can be chosen."""
        return self.state == FINISHED

    @property
    def cautious(self) -> float:
        """The gain less its standard error."""
        return self.gain - self.error


@dataclass(frozen=True)
class TrialBook:
    """The trials of a folder, in their order.

    Args:
        ledger: The file, its lines sealed for these settings.
    """

    ledger: Ledger

    def read(self) -> list[TrialRecord]:
        """Return all trials that were finished; one that was torn is left out.

        Raises:
            InputError: A line is damaged or was edited; names the file and the line.
        """
        records = []
        for number, line in enumerate(self.ledger.lines(), 1):
            values = self.ledger.values(line, number)
            try:
                record = _build_record(values)
            except (KeyError, TypeError, AttributeError) as error:
                raise self.ledger.damaged(number, f"holds no trial: {quote(str(error))}") from error
            if record.number != number - 1:
                raise self.ledger.damaged(number, f"is not trial {number - 1}")
            records.append(record)
        return records

    def append(self, record: TrialRecord) -> None:
        """Keep a trial; it counts once it is on the disk."""
        lines = self.ledger.lines()
        files.cut(self.ledger.path, sum(map(len, lines)))
        files.append(self.ledger.path, self.ledger.line(dataclasses.asdict(record), record.number + 1))


def _build_record(values: Mapping[str, Any]) -> TrialRecord:
    gains = {name: tuple(ends) for name, ends in values["gains"].items()}
    return TrialRecord(**{**values, "entries": tuple(values["entries"]), "gains": gains})


def check_folder(folder: Path) -> None:
    """Check that a search can be kept in a folder, before anything slow is done.

    Raises:
        InputError: It is a file, or holds something else.
    """
    check_name(folder)
    if exists(folder) and not is_folder(folder):
        raise InputError(
            f"{folder} is a file; the stack file goes into a folder that holds the search too. Name another."
        )
    if is_folder(folder) and not exists(folder / SETTINGS):
        strangers = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK)
        if strangers:
            raise InputError(
                f"{folder} holds {strangers[0]} but no {SETTINGS}, so it is no folder of a search. Name an empty one."
            )


@contextmanager
def open_book(folder: Path, settings: Mapping[str, Any]) -> Iterator[TrialBook]:
    """Begin a search in a folder, or go on with the one there; no other process may use it until the block ends.

    Args:
        folder: The folder.
        settings: All that trials depend on, but not how many there are.

    Raises:
        InputError: The folder holds something else, a search with other settings or of another model, or is in use.
    """
    check_folder(folder)
    files.make_folder(folder)
    with files.hold_lock(folder / LOCK):
        values = json.loads(json.dumps({"format": FORMAT, **settings}, default=str))
        if exists(folder / SETTINGS):
            _refuse_different(folder, values)
        else:
            text = json.dumps(values, ensure_ascii=False, indent=2) + "\n"
            files.write_whole(folder / SETTINGS, text.encode("utf-8"))
        place = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
        yield TrialBook(Ledger(folder / TRIALS, place))


def _refuse_different(folder: Path, values: Mapping[str, Any]) -> None:
    content = files.read_if_there(folder / SETTINGS)
    try:
        before = json.loads(content)
    except ValueError as error:
        raise InputError(f"{folder / SETTINGS} is damaged: {error}. Name another folder.") from error
    if not isinstance(before, dict):
        raise InputError(f"{folder / SETTINGS} holds no settings of a search. Name another folder.")
    differing = [name for name in {**before, **values} if before.get(name) != values.get(name)]
    if differing:
        name = differing[0]
        raise InputError(
            f"{folder} holds a search with other settings: {name} is {quote(before.get(name))} there and "
            f"{quote(values.get(name))} here. Repeat its settings, or name another folder."
        )
