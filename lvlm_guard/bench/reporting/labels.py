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
        """Return the rectangle with this centre and size."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def overlaps(self, box: Box) -> bool:
        """Return whether they share more than an edge."""
        across = self.left < box.right and box.left < self.right
        return across and self.top < box.bottom and box.top < self.bottom

    def is_within(self, box: Box) -> bool:
        """Return whether it lies in another one."""
        across = self.left >= box.left and self.right <= box.right
        return across and self.top >= box.top and self.bottom <= box.bottom


@dataclass(frozen=True)
class Place:
    """Where a label is: its centre, and the end of the line that leads to its mark, None where it stands beside it."""

    x: float
    y: float
    leader: tuple[float, float] | None


@dataclass(frozen=True)
class Label:
    """A label to be placed: the mark it names and its own size."""

    x: float
    y: float
    width: float
    height: float


def place(labels: Sequence[Label], frame: Box, marks: Sequence[Box], soft: Sequence[Box] = ()) -> list[Place]:
    """Place every label near its mark, one after the other, each where it costs least.

    Args:
        labels: The labels.
        frame: What they may not leave.
        marks: What they may not cover.
        soft: What they had better not cover.
    """
    occupied: list[Box] = []
    places = []
    for label in labels:
        centre = min(_candidates(label), key=lambda at: _cost(label, at, frame, [*marks, *occupied], soft))
        occupied.append(Box.around(*centre, label.width, label.height))
        places.append(Place(*centre, _leader(label, occupied[-1])))
    return places


def _candidates(label: Label) -> Iterator[tuple[float, float]]:
    """Yield centres of the label around its mark, near ones first; the label's near edge is at the radius."""
    for radius in RADII:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            across, down = math.cos(angle), math.sin(angle)
            yield label.x + across * (radius + label.width / 2 - 4), label.y + down * (radius + label.height / 2 - 4)


def _cost(label: Label, at: tuple[float, float], frame: Box, hard: Iterable[Box], soft: Iterable[Box]) -> float:
    box = Box.around(*at, label.width, label.height)
    end = _leader(label, box)
    cost = _distance(label, box) + (0.0 if box.is_within(frame) else 2 * COVERS)
    for obstacle in hard:
        if obstacle.left < label.x < obstacle.right and obstacle.top < label.y < obstacle.bottom:
            cost += COVERS * box.overlaps(obstacle)
        else:
            cost += COVERS * box.overlaps(obstacle) + CROSSES * (
                end is not None and _crosses((label.x, label.y), end, obstacle)
            )
    return cost + TOUCHES * sum(box.overlaps(soft_box) for soft_box in soft)


def _nearest(label: Label, box: Box) -> tuple[float, float]:
    return min(max(label.x, box.left), box.right), min(max(label.y, box.top), box.bottom)


def _distance(label: Label, box: Box) -> float:
    return math.dist((label.x, label.y), _nearest(label, box))


def _leader(label: Label, box: Box) -> tuple[float, float] | None:
    return _nearest(label, box) if _distance(label, box) > LEADER else None


def _crosses(start: tuple[float, float], end: tuple[float, float], box: Box) -> bool:
    """Return whether a line passes through a rectangle, seen at eight points of it."""
    steps = [step / 8 for step in range(1, 8)]
    points = [(start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])) for t in steps]
    return any(box.left < x < box.right and box.top < y < box.bottom for x, y in points)
