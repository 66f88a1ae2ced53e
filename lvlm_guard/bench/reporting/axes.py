"""The straight axes of the report's charts: where values are drawn, and round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_guard.bench.scoring.intervals import Interval

LEFT, RIGHT, TOP, BOTTOM = 64.0, 904.0, 16.0, 424.0
"""The frame of the scatter chart."""


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: where, and what stands there."""

    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """A straight axis: `low` is drawn at `start` and `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return where a value is drawn."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def lay_out_quality(intervals: Sequence[Interval], *, turned: bool) -> tuple[tuple[Tick, ...], Scale]:
    """Lay out the axis of quality, the better end on top."""
    ends = [
        value
        for interval in intervals
        for value in (interval.value, interval.low, interval.high)
        if not math.isnan(value)
    ]
    room = 0.06 * (max(ends) - min(ends)) or 0.05
    low, high = min(ends) - room, max(ends) + room
    scale = Scale(high, low, BOTTOM, TOP) if turned else Scale(low, high, BOTTOM, TOP)
    return lay_out_ticks(low, high, scale), scale


def lay_out_ticks(low: float, high: float, scale: Scale) -> tuple[Tick, ...]:
    """Lay out round ticks of a straight axis between two values."""
    step = find_step(high - low)
    values = [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return tuple(Tick(scale.at(value), format_tick(value, step)) for value in values)


def find_step(span: float, ticks: int = 6) -> float:
    """Return a round distance of ticks."""
    rough = span / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough)


def format_tick(value: float, step: float) -> str:
    """Write the figure of a tick with as many digits as its axis needs."""
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def find_bounds(interval: Interval, scale: Scale) -> tuple[float, float] | None:
    """Return where the bounds of a score are drawn; None where they are not known."""
    return (
        None
        if math.isnan(interval.low) or math.isnan(interval.high)
        else (scale.at(interval.low), scale.at(interval.high))
    )
