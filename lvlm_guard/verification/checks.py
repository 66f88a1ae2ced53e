"""What one check of a verification says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["pass", "refused", "failed", "unproven"]
STATUSES: tuple[Status, ...] = get_args(Status)
CheckName = Literal[
    "repeats", "cache", "rows", "neutral", "effect", "executors", "recompute", "restored", "prefill cost", "decode cost"
]
MEANINGS: dict[CheckName, str] = {
    "repeats": "plain generate gives the same logits twice",
    "cache": "plain generate gives the same logits without a cache",
    "effect": "the stack changes the logits",
    "neutral": "with nothing to do, or at neutral values, the logits are those of plain generate",
    "executors": "branches in one batch give what branches one after another give",
    "recompute": "every step gives what a computation from scratch gives",
    "rows": "every row of a left-padded batch gives what it gives alone",
    "restored": "model, hooks and plain answers are as before, after a call and after an exception inside one",
    "prefill cost": "time to the first token, plain is 1",
    "decode cost": "time of each further token, plain is 1",
}
"""Every check, in the order of tables."""


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Args:
        check: Which one.
        stack: Name of the stack; empty where it is about the model as a whole.
        status: `pass`; `refused`: an error of the library, which says why; `failed`: the figure is beyond its tolerance, or a
            call ended in an error that is not the library's; `unproven`: there is nothing to compare with.
        figure: A difference of logits in units of their standard deviation, or a ratio of times; None where nothing ran.
        tolerance: What the figure must not exceed, for `effect` what it must reach; None where there is no limit.
        says: The reason, or what the figure was compared with.
        seconds: Duration.
    """

    check: CheckName
    stack: str
    status: Status
    figure: float | None = None
    tolerance: float | None = None
    says: str = ""
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """The stack and the check."""
        return f"{self.stack}: {self.check}" if self.stack else self.check


@dataclass(frozen=True)
class Measurement:
    """What a check measured.

    Args:
        figure: As in `Check`; None and NaN are failures.
        tolerance: As in `Check`.
        says: As in `Check`.
        at_least: Whether the figure must reach the tolerance, not keep below it.
    """

    figure: float | None
    tolerance: float | None = None
    says: str = ""
    at_least: bool = False

    @property
    def is_good(self) -> bool:
        """Whether the figure is within its limit."""
        if self.figure is None or self.tolerance is None:
            return False
        return self.figure >= self.tolerance if self.at_least else self.figure <= self.tolerance


class Unproven(Exception):
    """There is nothing to compare with."""


class Crash(Exception):
    """A guarded call ended in an error that is not the library's."""


def count(checks: Sequence[Check], status: Status) -> int:
    """Return how many checks have a status."""
    return sum(check.status == status for check in checks)
