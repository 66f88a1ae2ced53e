"""What may be searched of a strategy: its own parameters, within a range read from the bounds and published values they state.

A number is searched from a quarter of its published distance from neutral to four times that, within its bounds: on a
logarithmic scale where neutral is 0. Words and switches are searched over all their values. Seeds, time limits, functions,
files, layers and lists stay as they are. A parameter whose published value says nothing of its range may state one:
`Field(json_schema_extra={"search": [low, high]})`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import TypeAdapter

from lvlm_guard.bench.running.systems import SWAPPED
from lvlm_guard.errors import PluginRejected, quote
from lvlm_guard.strategy.fields import DAY
from lvlm_guard.strategy.names import strategy_name

REACH = 4.0
"""How far from the published value a search goes, as a factor of its distance from neutral."""

SEARCH = "search"
"""Where the schema of a parameter holds a range of its own: `[low, high]`."""

_WIDEST = 2**31
"""A whole number that may lie further from zero is a seed."""


class Trial(Protocol):
    """What chooses values: a trial of Optuna, a running one or one whose values are fixed."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number."""
        ...

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return one of some values."""
        ...


@dataclass(frozen=True)
class NumberRange:
    """Numbers that a parameter may have.

    Args:
        name: The parameter.
        low: The least.
        high: The greatest.
        default: The published value, between the two.
        is_whole: Whether only whole numbers.
        is_log: Whether equal factors are equally likely, instead of equal differences.
    """

    name: str
    low: float
    high: float
    default: float
    is_whole: bool = False
    is_log: bool = False

    def suggest(self, trial: Trial, prefix: str) -> float | int:
        """Let a trial choose a value."""
        if self.is_whole:
            return trial.suggest_int(f"{prefix}.{self.name}", int(self.low), int(self.high), log=self.is_log)
        return trial.suggest_float(f"{prefix}.{self.name}", self.low, self.high, log=self.is_log)


@dataclass(frozen=True)
class Options:
    """Values that a parameter may have.

    Args:
        name: The parameter.
        values: All of them.
        default: The published value, one of them.
    """

    name: str
    values: tuple[Any, ...]
    default: Any

    def suggest(self, trial: Trial, prefix: str) -> Any:
        """Let a trial choose a value."""
        return trial.suggest_categorical(f"{prefix}.{self.name}", list(self.values))


Parameter = NumberRange | Options


def find_parameters(strategy: type, fixed: Collection[str] = ()) -> tuple[Parameter, ...]:
    """Return what may be searched of a strategy, in the order of its fields.

    Args:
        strategy: The class.
        fixed: Parameters that are given and stay as they are.

    Raises:
        PluginRejected: A range that the strategy states itself cannot be used.
    """
    neutral: Mapping[str, Any] = getattr(strategy, "neutral", None) or {}
    properties: Mapping[str, Mapping[str, Any]] = TypeAdapter(strategy).json_schema().get("properties", {})
    parameters = (
        _read_parameter(strategy_name(strategy), name, entry, neutral.get(name))
        for name, entry in properties.items()
        if name not in fixed and name != SWAPPED
    )
    return tuple(parameter for parameter in parameters if parameter is not None)


def _read_parameter(strategy: str, name: str, entry: Mapping[str, Any], neutral: Any) -> Parameter | None:
    if "default" not in entry:
        return None
    if "enum" in entry:
        return Options(name, tuple(entry["enum"]), entry["default"])
    kind = entry.get("type")
    if kind == "boolean":
        return Options(name, (False, True), entry["default"])
    if kind not in ("number", "integer") or entry["default"] is None:
        return None
    if SEARCH in entry:
        return _read_stated(strategy, name, entry, is_whole=kind == "integer")
    return _read_number(name, entry, neutral, is_whole=kind == "integer")


def _read_stated(strategy: str, name: str, entry: Mapping[str, Any], *, is_whole: bool) -> NumberRange:
    """Return the range that a strategy states itself."""
    ends, default = entry[SEARCH], entry["default"]
    is_pair = isinstance(ends, (list, tuple)) and all(isinstance(end, (int, float)) for end in ends)
    if not is_pair or len(ends) != 2 or not ends[0] <= default <= ends[1]:  # noqa: PLR2004 - low and high
        raise PluginRejected(
            f"{strategy}.{name}: {SEARCH!r} must be [low, high] with the default {default} between them, got {quote(ends)}."
        )
    return NumberRange(name, ends[0], ends[1], default, is_whole, is_log=ends[0] > 0)


def _read_number(name: str, entry: Mapping[str, Any], neutral: Any, *, is_whole: bool) -> NumberRange | None:
    """Return the range round a published number; None for seeds, time limits and published zeros."""
    low, high = _read_bounds(entry, is_whole=is_whole)
    default = float(entry["default"])
    if max(-low, high) >= _WIDEST or high == DAY:
        return None
    origin = float(neutral) if isinstance(neutral, (int, float)) else min(max(0.0, low), high)
    ends = sorted((origin + (default - origin) / REACH, origin + (default - origin) * REACH))
    least, most = max(ends[0], low), min(ends[1], high)
    if is_whole:
        least, most = math.ceil(least), math.floor(most)
    if not least < most or not least <= default <= most:
        return None
    return NumberRange(name, least, most, default, is_whole, is_log=origin == 0 and least > 0)


def _read_bounds(entry: Mapping[str, Any], *, is_whole: bool) -> tuple[float, float]:
    """Return the least and the greatest value; bounds that are themselves left out are moved inwards a little."""
    step = 1 if is_whole else 1e-6
    low = entry.get("minimum", entry.get("exclusiveMinimum", -math.inf) + step)
    high = entry.get("maximum", entry.get("exclusiveMaximum", math.inf) - step)
    return float(low), float(high)
