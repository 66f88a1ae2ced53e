"""The answer that habit leads to, estimated from what a suite's other pictures show; the picture asked about never counts.

Benchmarks do not say what somebody would answer who knows what usually goes together and does not look. Two estimates do:

* `ObjectHabits`, for questions whether an object is there: how often it is present in other pictures with the other objects
  that are known in this one, as in POPE's adversarial negatives (arXiv 2305.10355), against the average object.
* `StatementHabits`, for attributes, numbers and relations: how often the same statement ("the sky is sunny") is true of other
  pictures, and where few say so, how often what it shares with other statements is.

Both shrink few counts towards general ones (`SMOOTHING`, `COMPANY`), need `FEWEST` other pictures, and return None for ties: where one
more picture, of either answer, could turn the estimate. Without that, leaving a picture out would itself push the habit of a
balanced suite against the truth. Habit is a property of the suite's pictures, not of any model.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.bench.items import Item

FEWEST = 5
"""Other pictures below which nothing is said."""

SMOOTHING = 2.0
"""Statements that the general share of true ones stands for beside the particular one."""

COMPANY = 10.0
"""Pictures that the frequency of an object stands for beside how often it is there with another."""

KEY = "habit"
"""Where an item's `extra` holds "yes", "no" or None."""

Counts: TypeAlias = NDArray[np.float64]
Aspect: TypeAlias = tuple[str, ...]
"""What statements about several pictures have in common: ("state", "sky", "sunny") or ("state", "sunny")."""


@dataclass(frozen=True)
class Statement:
    """What a yes/no question states of its picture.

    Args:
        picture: The picture.
        aspects: What the statement shares with others, the most particular first; each entry holds aspects that count together.
        true: Whether it is true.
    """

    picture: str
    aspects: Sequence[Sequence[Aspect]]
    true: bool


class StatementHabits:
    """How often statements are true, over all pictures but one.

    Args:
        statements: Every statement of the suite.
    """

    def __init__(self, statements: Iterable[Statement]) -> None:
        self._totals: dict[Aspect, list[int]] = defaultdict(lambda: [0, 0])
        self._by_picture: dict[tuple[str, Aspect], list[int]] = defaultdict(lambda: [0, 0])
        for picture, aspect, true in _distinct(statements):
            self._totals[aspect][true] += 1
            self._by_picture[picture, aspect][true] += 1

    def habit(self, picture: str, aspects: Sequence[Sequence[Aspect]]) -> str | None:
        """Return "yes", "no" or None for a statement about a picture, from the other pictures alone."""
        counts = [self._count(picture, together) for together in aspects]
        if max(sum(pair) for pair in counts) < FEWEST:
            return None
        shares = [_share_true(counts, more=more) for more in ((1, 0), (0, 1))]
        return _agree(share - 1 / 2 for share in shares)

    def _count(self, picture: str, together: Sequence[Aspect]) -> tuple[int, int]:
        """Count false and true statements of the other pictures."""
        none = (0, 0)
        pairs = [
            (self._totals.get(aspect, none), self._by_picture.get((picture, aspect), none)) for aspect in set(together)
        ]
        return sum(total[0] - left_out[0] for total, left_out in pairs), sum(
            total[1] - left_out[1] for total, left_out in pairs
        )


def _distinct(statements: Iterable[Statement]) -> Iterable[tuple[str, Aspect, bool]]:
    """Return each aspect of each statement once, however often it is put about one picture with one truth."""
    rows = {
        (statement.picture, tuple(map(tuple, statement.aspects)), statement.true): statement for statement in statements
    }
    return [
        (statement.picture, aspect, statement.true)
        for statement in rows.values()
        for aspect in {aspect for together in statement.aspects for aspect in together}
    ]


def _share_true(counts: Sequence[tuple[int, int]], more: tuple[int, int]) -> float:
    """Return the share of true statements, general counts first, each with some more, each shrunk to the one before."""
    share = 1 / 2
    for false, true in reversed(counts):
        total = false + true + sum(more)
        share = (true + more[1] + SMOOTHING * share) / (total + SMOOTHING)
    return share


def _agree(excesses: Iterable[float]) -> str | None:
    """Return yes where all shares are above what they are held against, no where all are below."""
    signs = {float(np.sign(excess)) for excess in excesses}
    return "yes" if signs == {1.0} else "no" if signs == {-1.0} else None


class ObjectHabits:
    """Which objects are expected in a picture, from what is present in the others.

    What is not known to be present counts as absent, which lowers all shares alike and leaves their order. So an object is
    held not against one half, but against the average, in the same company, of all objects that the suite asks about and that
    are not of that company, each as often as it is asked about.

    Args:
        present: Objects known to be present, by picture.
        questions: Every picture and object that is asked about.
    """

    def __init__(self, present: Mapping[str, Collection[str]], questions: Iterable[tuple[str, str]]) -> None:
        pairs = set(questions)
        names = sorted({name for _, name in pairs}.union(*present.values()))
        self._places = {name: place for place, name in enumerate(names)}
        self._marks = {picture: self._mark(objects) for picture, objects in present.items()}
        self._questions = {picture: np.zeros(len(names)) for picture, _ in pairs}
        for picture, name in pairs:
            self._questions[picture][self._places[name]] = 1.0
        rows = np.array(list(self._marks.values())).reshape(len(self._marks), len(names))
        self._together: Counts = rows.T @ rows
        self._weights = np.sum(list(self._questions.values()), axis=0) if pairs else np.zeros(len(names))

    def _mark(self, names: Collection[str]) -> Counts:
        marks = np.zeros(len(self._places))
        marks[[self._places[name] for name in names]] = 1.0
        return marks

    def habit(self, picture: str, name: str) -> str | None:
        """Return "yes", "no" or None for whether an object is in a picture, from the other pictures alone.

        Whether that object is present here is not looked at; the other objects known here are its company.
        """
        no_objects = np.zeros(len(self._places))
        marks, weights = self._marks.get(picture, no_objects), self._weights - self._questions.get(picture, no_objects)
        pictures = len(self._marks) - (picture in self._marks)
        if pictures < FEWEST or name not in self._places:
            return None
        place = self._places[name]
        company = [int(at) for at in np.flatnonzero(marks) if at != place]
        weights[company] = 0.0
        if not weights.any():
            return None
        remainder = _OtherPictures(
            self._together.diagonal() - marks, self._together[company] - marks, pictures, company
        )
        average = float(remainder.expected() @ weights / weights.sum())
        return _agree(remainder.expected_with(place, more) - average for more in (0.0, 1.0))


@dataclass(frozen=True, eq=False)
class _OtherPictures:
    """The other pictures: how many hold each object, alone `[objects]` and with each of the company `[company, objects]`."""

    present: Counts
    together: Counts
    pictures: int
    company: Sequence[int]

    def expected(self) -> Counts:
        """Return how often each object is present in this company: the mean over it, shrunk to how frequent the object is."""
        frequency = self.present / self.pictures
        if not self.company:
            return frequency
        totals = self.present[self.company, None]
        return np.asarray(((self.together + COMPANY * frequency) / (totals + COMPANY)).mean(0))

    def expected_with(self, place: int, more: float) -> float:
        """Return the same for one object, as if there were one more picture of this company, with it (1) or without (0)."""
        frequency = (self.present[place] + more) / (self.pictures + 1)
        if not self.company:
            return float(frequency)
        totals = self.present[self.company] + 1
        return float(((self.together[:, place] + more + COMPANY * frequency) / (totals + COMPANY)).mean())


def add_habit(item: Item, habit: str | None) -> Item:
    """Return an item with its habit in `extra`."""
    return dataclasses.replace(item, extra={**item.extra, KEY: habit})
