"""What one system leaves in the folder of a run about one suite: answers, costs, and why it stopped."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.bench import files
from lvlm_guard.bench.running.sealing import Ledger, parse_object, remove_check, seal
from lvlm_guard.errors import InputError
from lvlm_guard.files import exists

SKIPPED = "skipped"
"""Where the cost of a batch that was skipped says why."""

COST_NUMBERS = ("rows", "tokens", "seconds", "prefill", "decode", "rows_per_forward")


@dataclass(frozen=True)
class Answer:
    """The answer of one system to one item, with the fields of `AnsweredItem`; or that the item was skipped."""

    id: str
    text: str
    tokens: int
    margin: float | None
    skipped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `skipped` only where it is true."""
        values = dataclasses.asdict(self)
        return values if self.skipped else {name: value for name, value in values.items() if name != "skipped"}


@dataclass(frozen=True)
class SystemRefusal:
    """Why a system stopped answering a suite.

    Args:
        batch: The first batch without answers.
        error: Class of the error.
        reason: Its message.
    """

    batch: int
    error: str
    reason: str


@dataclass(frozen=True)
class SystemFiles:
    """The files of one system and one suite.

    Args:
        folder: The folder of the run.
        check: The check value of the run's manifest; None in a run that was begun before runs had any.
        system: Who answers.
        suite: The suite's name in the run.
    """

    folder: Path
    check: str | None
    system: str
    suite: str

    @property
    def answers(self) -> Ledger:
        """The answers, in the order of the batches."""
        return self._ledger("answers")

    @property
    def costs(self) -> Ledger:
        """What each batch cost."""
        return self._ledger("costs")

    @property
    def refusal(self) -> Path:
        """Why the system stopped; there is no such file where it did not."""
        return self.folder / "refusals" / self.system / f"{self.suite}.json"

    def _ledger(self, kind: str) -> Ledger:
        return Ledger(self.folder / kind / self.system / f"{self.suite}.jsonl", self._place(kind))

    def _place(self, kind: str) -> str | None:
        return None if self.check is None else f"{self.check}/{kind}/{self.system}/{self.suite}"

    def parse_answers(self, lines: Sequence[bytes], expected: Sequence[str]) -> list[Answer]:
        """Return the answers of all lines, which must be those to the first of the expected ids.

        Raises:
            InputError: A line is damaged, or is not what the run wrote there; names the file and the line.
        """
        answers = []
        for number, line in enumerate(lines, 1):
            values = self.answers.values(line, number)
            if not _is_answer(values):
                raise self.answers.damaged(number, "is no answer")
            if number > len(expected) or values["id"] != expected[number - 1]:
                raise self.answers.damaged(number, "is not the answer that belongs there")
            answers.append(Answer(**values))
        return answers

    def parse_costs(self, lines: Sequence[bytes]) -> list[dict[str, Any]]:
        """Return the costs of all lines, which must be those of the first batches.

        Raises:
            InputError: As for `parse_answers`.
        """
        costs = [self.costs.values(line, number) for number, line in enumerate(lines, 1)]
        for number, cost in enumerate(costs, 1):
            numbers = all(_is_number(cost.get(name)) for name in COST_NUMBERS)
            if cost.get("batch") != number - 1 or not numbers or not isinstance(cost.get(SKIPPED, ""), str):
                raise self.costs.damaged(number, f"is not the cost of batch {number - 1}")
        return costs

    def write_refusal(self, refusal: SystemRefusal) -> None:
        """Keep why there are no more answers."""
        files.make_folder(self.refusal.parent)
        values = seal(dataclasses.asdict(refusal), self._place("refusals"))
        files.write_whole(self.refusal, (json.dumps(values, ensure_ascii=False, indent=2) + "\n").encode("utf-8"))

    def read_refusal(self) -> SystemRefusal | None:
        """Return why the system stopped; None where it did not.

        Raises:
            InputError: The file is not what the run wrote.
        """
        if not exists(self.refusal):
            return None
        try:
            values = remove_check(parse_object(files.read_if_there(self.refusal)), self._place("refusals"))
            return _build_refusal(values)
        except ValueError as error:
            raise InputError(
                f"{self.refusal} {error}. Remove that file, and the command that began the run asks the system again."
            ) from error


def _build_refusal(values: Mapping[str, Any]) -> SystemRefusal:
    kinds = {"batch": int, "error": str, "reason": str}
    if set(values) != set(kinds) or not all(type(values[name]) is kind for name, kind in kinds.items()):
        raise ValueError("is no refusal")
    return SystemRefusal(**values)


def _is_answer(values: Mapping[str, Any]) -> bool:
    kinds = {"id": str, "text": str, "tokens": int}
    return (
        set(values) - {SKIPPED} == {*kinds, "margin"}
        and values.get(SKIPPED, True) is True
        and all(type(values[name]) is kind for name, kind in kinds.items())
        and values["tokens"] >= 0
        and (values["margin"] is None or _is_number(values["margin"]))
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
