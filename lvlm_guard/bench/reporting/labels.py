"""Where labels go in a chart so that they cover neither each other nor what they name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

RADII = (11.0, 17.0, 25.0, 35.0, 48.0, 64.0, 84.0, 110.0, 140.0)
DIRECTIONS = 16
COVERS, CROSSES, TOUCHES = 1000.0, 90.0, 6.0
"""What it costs a place to cover a mark or a label, to lead across one, and to lie on an interval."""

LEADER = 15.0
"""From this distance on, a line leads to the mark."""


@dataclass(frozen=True)
class Box:
    """A rectangle in the units of a chart, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> Box:
        """The rectangle with this centre and size."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def overlaps(self, other: Box) -> bool:
        """Whether they share more than an edge."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def is_within(self, other: Box) -> bool:
        """Whether it lies in another one."""
        across = self.left >= other.left and self.right <= other.right
        return across and self.top >= other.top and self.bottom <= other.bottom


@dataclass(frozen=True)
class Place:
    """Where a label is: its centre, and the end of the line that leads to its mark, None where it stands beside it."""

    x: float
    y: float
    leader: tuple[float, float] | None


@dataclass(frozen=True)
class Wanted:
    """A label to be placed: the mark it names and its own size."""

    x: float
    y: float
    width: float
    height: float


def place(wanted: Sequence[Wanted], frame: Box, marks: Sequence[Box], soft: Sequence[Box] = ()) -> list[Place]:
    """Place every label near its mark, one after the other, each where it costs least.

    Args:
        wanted: The labels.
        frame: What they may not leave.
        marks: What they may not cover.
        soft: What they had better not cover.
    """
    taken: list[Box] = []
    places = []
    for one in wanted:
        found = min(_candidates(one), key=lambda at: _cost(one, at, frame, [*marks, *taken], soft))
        taken.append(Box.around(*found, one.width, one.height))
        places.append(Place(*found, _leader(one, taken[-1])))
    return places


def _candidates(one: Wanted) -> Iterator[tuple[float, float]]:
    """Centres of the label round its mark, near ones first; the label's near edge is at the radius."""
    for radius in RADII:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            across, down = math.cos(angle), math.sin(angle)
            yield one.x + across * (radius + one.width / 2 - 4), one.y + down * (radius + one.height / 2 - 4)


def _cost(one: Wanted, at: tuple[float, float], frame: Box, hard: Iterable[Box], soft: Iterable[Box]) -> float:
    box = Box.around(*at, one.width, one.height)
    end = _leader(one, box)
    cost = _distance(one, box) + (0.0 if box.is_within(frame) else 2 * COVERS)
    for other in hard:
        if other.left < one.x < other.right and other.top < one.y < other.bottom:
            cost += COVERS * box.overlaps(other)
        else:
            cost += COVERS * box.overlaps(other) + CROSSES * (end is not None and _crosses((one.x, one.y), end, other))
    return cost + TOUCHES * sum(box.overlaps(other) for other in soft)


def _nearest(one: Wanted, box: Box) -> tuple[float, float]:
    return min(max(one.x, box.left), box.right), min(max(one.y, box.top), box.bottom)


def _distance(one: Wanted, box: Box) -> float:
    return math.dist((one.x, one.y), _nearest(one, box))


def _leader(one: Wanted, box: Box) -> tuple[float, float] | None:
    return _nearest(one, box) if _distance(one, box) > LEADER else None


def _crosses(start: tuple[float, float], end: tuple[float, float], box: Box) -> bool:
    """Whether a line passes through a rectangle, seen at eight points of it."""
    steps = [step / 8 for step in range(1, 8)]
    points = [(start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])) for t in steps]
    return any(box.left < x < box.right and box.top < y < box.bottom for x, y in points)
