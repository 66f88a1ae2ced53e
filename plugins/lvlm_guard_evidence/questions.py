"""Calibration questions about labelled pictures, and which answers their habits lead to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import TypeVar

import numpy as np

from lvlm_guard.fitting import LabelledObject, LabelledPicture
from lvlm_guard_evidence.answers import NUMBERS, find_options, kind_of
from lvlm_guard_evidence.claims import Claim
from lvlm_guard_evidence.names import NamesTable, plural, tidy

WORDINGS = {
    "existence": "is there {article} {subject} in the image ?",
    "is_attribute": "is the {subject} {value} ?",
    "which_attribute": "what colour is the {subject} ?",
    "is_side": "is the {subject} {direction} of the {reference} ?",
    "which_side": "is the {subject} left or right of the {reference} ?",
    "is_height": "is the {subject} {direction} the {reference} ?",
    "which_height": "is the {subject} above or below the {reference} ?",
    "how_many": "how many {subjects} are there ?",
}
SIDES = (("left", "right"), ("above", "below"))
"""What lies before and behind on each axis."""
HABIT = 0.5
"""Share of pictures from which on something is a habit."""
LEAST = 4
"""Pictures that a habit is counted on at least."""
APART = 0.1
"""Least distance of two objects, as a share of the picture, for one to lie beside the other."""


_Counted = TypeVar("_Counted")


@dataclass(frozen=True)
class CalibrationQuestion:
    """A question with a known answer.

    Args:
        picture: Number of the picture.
        claim: What is asked.
        options: What it chooses from.
        truth: Which of them is true.
        is_habitual: Whether the habits of the pictures lead to the truth; None where they lead nowhere.
    """

    picture: int
    claim: Claim
    options: tuple[str, ...]
    truth: int
    is_habitual: bool | None

    @property
    def kind(self) -> str:
        """Its kind."""
        return kind_of(self.claim)

    @property
    def text(self) -> str:
        """Its words."""
        claim = self.claim
        return WORDINGS[self.kind].format(
            article="an" if claim.subject[0] in "aeiou" else "a",
            subject=claim.subject,
            subjects=plural(claim.subject),
            value=claim.value,
            direction=claim.direction,
            reference=claim.reference,
        )


@dataclass(eq=False)
class LabelHabits:
    """What usually goes with what in labelled pictures.

    Args:
        together: How often a name is there where another one is, by (other, name).
        present: How often each name is there.
        values: How often each name has each value.
        numbers: How often there is which number of each name, where there is one.
        places: How often the first of a pair lies left of (axis 0) or above (1) the second, by (axis, first, second).
        pictures: How many pictures were counted.
    """

    together: Counter[tuple[str, str]] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    numbers: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    places: dict[tuple[int, str, str], Counter[bool]] = field(default_factory=lambda: defaultdict(Counter))
    pictures: int = 0

    def expects(self, name: str, company: Sequence[str]) -> bool | None:
        """Return whether habit has an object where these are: one of them comes with it in more than half of the pictures."""
        counted = [companion for companion in company if self.present[companion] >= LEAST and companion != name]
        if not counted:
            return None
        return max(self.together[companion, name] / self.present[companion] for companion in counted) > HABIT

    def usual_value(self, name: str) -> str | None:
        """Return the value that an object has in more than half of the pictures."""
        return _most_frequent(self.values[name])

    def usual_number(self, name: str) -> int | None:
        """Return how many there are of an object in more than half of the pictures that show any."""
        return _most_frequent(self.numbers[name])

    def usually_before(self, axis: int, first: str, second: str) -> bool | None:
        """Return whether the first of a pair usually lies left of (axis 0) or above (1) the second; None where there is no habit."""
        counts = self.places[axis, first, second]
        if counts.total() < LEAST or abs(2 * counts[True] - counts.total()) < HABIT * counts.total():
            return None
        return counts[True] * 2 > counts.total()


def _most_frequent(counts: Counter[_Counted]) -> _Counted | None:
    """Return what was counted in more than half of the cases; None where nothing was, or in too few cases."""
    if counts.total() < LEAST:
        return None
    value, count = counts.most_common(1)[0]
    return value if count > HABIT * counts.total() else None


def count_habits(pictures: Sequence[LabelledPicture], table: NamesTable) -> LabelHabits:
    """Count what goes with what."""
    habits = LabelHabits(pictures=len(pictures))
    for picture in pictures:
        things = single_objects(picture, table)
        names = table.merge(thing.name for thing in picture.objects or ())
        habits.present.update(names)
        for name, number in count_objects(picture, table).items():
            habits.numbers[name][number] += 1
        habits.together.update(permutations(names, 2))
        for name, thing in things.items():
            habits.values[name].update(tidy(value) for value in thing.attributes[:1])
        for first, second in permutations(things, 2):
            for axis in range(len(SIDES)):
                if (offset := find_offset(things[first], things[second], axis)) is not None:
                    habits.places[axis, first, second][offset > 0] += 1
    return habits


def count_objects(picture: LabelledPicture, table: NamesTable) -> Counter[str]:
    """Return how many of each object a picture shows, by name."""
    return Counter(name for thing in picture.objects or () if (name := table.find(thing.name)) is not None)


def single_objects(picture: LabelledPicture, table: NamesTable) -> dict[str, LabelledObject]:
    """Return the objects that a picture shows once, by name."""
    counts = count_objects(picture, table)
    named = [(table.find(thing.name), thing) for thing in picture.objects or ()]
    return {name: thing for name, thing in named if name is not None and counts[name] == 1}


def find_offset(first: LabelledObject, second: LabelledObject, axis: int) -> float | None:
    """Return how far the second lies right of (0) or below (1) the first, by the middles of their boxes; None without boxes."""
    if first.box is None or second.box is None:
        return None
    middles = [(box[axis] + box[axis + 2]) / 2 for box in (first.box, second.box)]
    return middles[1] - middles[0]


def ask_questions(
    pictures: Sequence[LabelledPicture],
    sizes: Sequence[tuple[int, int]],
    table: NamesTable,
    values: Sequence[str],
    seed: int = 0,
) -> list[CalibrationQuestion]:
    """Return questions about labelled pictures, of each kind one or two a picture, with as many habitual truths as not where possible."""
    habits = count_habits(pictures, table)
    rng = np.random.default_rng((seed, 21))
    questions: list[CalibrationQuestion] = []
    for number, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
        things = single_objects(picture, table)
        questions += _ask_existence(number, picture, table, habits, rng)
        questions += _ask_values(number, things, values, habits, rng)
        questions += _ask_places(number, things, size, habits, rng)
        questions += _ask_numbers(number, count_objects(picture, table), habits, rng)
    return questions


def _ask_existence(
    number: int, picture: LabelledPicture, table: NamesTable, habits: LabelHabits, rng: np.random.Generator
) -> list[CalibrationQuestion]:
    """One object that is there and one that is not of those that habit expects, and of those that it does not."""
    present = table.merge(thing.name for thing in picture.objects or ())
    groups: dict[tuple[bool, bool | None], list[str]] = defaultdict(list)
    for name in table.names:
        expected = habits.expects(name, [companion for companion in present if companion != name])
        groups[name in present, expected].append(name)
    return [
        CalibrationQuestion(
            number,
            Claim("object", str(rng.choice(names))),
            ("yes", "no"),
            int(not is_present),
            None if expected is None else expected == is_present,
        )
        for (is_present, expected), names in sorted(groups.items(), key=repr)
    ]


def _ask_values(
    number: int, things: dict[str, LabelledObject], values: Sequence[str], habits: LabelHabits, rng: np.random.Generator
) -> list[CalibrationQuestion]:
    """What value, and whether the true one and a false one: the usual one where that is false."""
    described = [
        name for name, thing in things.items() if len({tidy(value) for value in thing.attributes} & set(values)) == 1
    ]
    if not described or len(values) < 2:  # noqa: PLR2004 - nothing to choose between
        return []
    unusual = [name for name in described if habits.usual_value(name) not in (None, tidy(things[name].attributes[0]))]
    name = str(rng.choice(unusual or described))
    usual = habits.usual_value(name)
    true = next(value for value in map(tidy, things[name].attributes) if value in values)
    wrong = (
        usual if usual is not None and usual != true else str(rng.choice([value for value in values if value != true]))
    )
    is_habitual = None if usual is None else usual == true
    options = find_options(Claim("attribute", name), values)
    return [
        CalibrationQuestion(number, Claim("attribute", name), options, options.index(true), is_habitual),
        CalibrationQuestion(number, Claim("attribute", name, value=true), ("yes", "no"), 0, is_habitual),
        CalibrationQuestion(number, Claim("attribute", name, value=wrong), ("yes", "no"), 1, is_habitual),
    ]


def _ask_places(
    number: int, things: dict[str, LabelledObject], size: tuple[int, int], habits: LabelHabits, rng: np.random.Generator
) -> list[CalibrationQuestion]:
    """Left or right of one pair, and above or below of one: both ways, and to choose."""
    questions: list[CalibrationQuestion] = []
    for axis in range(len(SIDES)):
        if pairs := _list_pairs(things, axis, size[axis]):
            questions += _ask_sides(
                number, _pick(_prefer_broken(pairs, axis, things, habits), rng), axis, things, habits
            )
    return questions


def _prefer_broken(
    pairs: list[tuple[str, str]], axis: int, things: dict[str, LabelledObject], habits: LabelHabits
) -> list[tuple[str, str]]:
    """Return the pairs that do not lie as they usually do; where there are none those that do, else all."""
    habitual = [pair for pair in pairs if habits.usually_before(axis, *pair) is not None]
    broken = [pair for pair in habitual if habits.usually_before(axis, *pair) != (_offset(things, pair, axis) > 0)]
    return broken or habitual or pairs


def _ask_sides(
    number: int, pair: tuple[str, str], axis: int, things: dict[str, LabelledObject], habits: LabelHabits
) -> list[CalibrationQuestion]:
    (first, second), options = pair, SIDES[axis]
    is_before, usual = _offset(things, pair, axis) > 0, habits.usually_before(axis, *pair)
    is_habitual, truth = None if usual is None else usual == is_before, int(not is_before)
    claims = [Claim("relation", first, direction=direction, reference=second) for direction in options]
    choice = Claim("relation", first, reference=second, options=options)
    return [
        *(
            CalibrationQuestion(number, claim, ("yes", "no"), int(option != truth), is_habitual)
            for option, claim in enumerate(claims)
        ),
        CalibrationQuestion(number, choice, options, truth, is_habitual),
    ]


def _ask_numbers(
    number: int, counts: Counter[str], habits: LabelHabits, rng: np.random.Generator
) -> list[CalibrationQuestion]:
    """How many there are of one object, an unusual number where there is one: of objects that differ in it from picture to picture."""
    countable = [name for name, count in counts.items() if count < len(NUMBERS) and len(habits.numbers[name]) > 1]
    unusual = [name for name in countable if habits.usual_number(name) not in (None, counts[name])]
    several = [name for name in countable if counts[name] > 1]
    if not countable:
        return []
    name = str(rng.choice(unusual or several or countable))
    usual = habits.usual_number(name)
    is_habitual = None if usual is None else usual == counts[name]
    claim = Claim("number", name)
    return [CalibrationQuestion(number, claim, find_options(claim, ()), counts[name], is_habitual)]


def _list_pairs(things: dict[str, LabelledObject], axis: int, side: int) -> list[tuple[str, str]]:
    return [
        pair
        for pair in permutations(things, 2)
        if (offset := find_offset(things[pair[0]], things[pair[1]], axis)) is not None and abs(offset) > APART * side
    ]


def _offset(things: dict[str, LabelledObject], pair: tuple[str, str], axis: int) -> float:
    return find_offset(things[pair[0]], things[pair[1]], axis) or 0.0


def _pick(pairs: Sequence[tuple[str, str]], rng: np.random.Generator) -> tuple[str, str]:
    return pairs[int(rng.integers(len(pairs)))]
