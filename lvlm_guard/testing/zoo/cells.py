"""What is known about one mechanism on one model type."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["exact", "refused", "wrong", "crash", "no power", "unproven", "not taken"]
STATUSES: tuple[Status, ...] = ("exact", "refused", "wrong", "crash", "no power", "unproven", "not taken")


@dataclass(frozen=True)
class MechanismCell:
    """Result of one mechanism on one model type.

    Args:
        status: `exact`: as the reference says, and the mechanism had an effect. `refused`: an error of the library.
            `wrong`: another number than the reference. `crash`: an error that is not the library's. `no power`: right, but
            the mechanism had no effect to speak of. `unproven`: it ran, and plain generate cannot run the branch by itself.
            `not taken`: the model takes no such call, guarded or not.
        delta: Largest difference from the reference, in units of the logits' standard deviation; None where nothing ran.
        effect: Largest difference that the mechanism makes, in the same units.
        executor: How branches were decoded, and why.
        reference: What it was compared with: `recompute`, without a cache; `cached`, where the model itself gives other
            numbers without one; `batch`, where a row of plain generate depends on its batch.
        seconds: Duration of the guarded call.
        error: Class and text of the error.
    """

    status: Status
    delta: float | None = None
    effect: float | None = None
    executor: str = ""
    reference: str = ""
    seconds: float = 0.0
    error: str = ""

    @property
    def explanation(self) -> str:
        """What is behind the status, in one line."""
        if self.error:
            return self.error
        return f"off by {self.delta:g}, effect {self.effect:g}, against {self.reference}; {self.executor}"

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as plain values, without what is empty."""
        values = asdict(self)
        return {name: value for name, value in values.items() if value not in (None, "")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MechanismCell:
        """Return the cell that `to_dict` wrote."""
        return cls(**values)
