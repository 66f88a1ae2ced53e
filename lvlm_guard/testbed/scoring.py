"""How answers about the scenes of a world are counted; `lvlm_guard.testbed.measures` makes scores of the counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.scoring.habits import count_half
from lvlm_guard.bench.scoring.intervals import Statistic, mean_share, yes_no_counts
from lvlm_guard.bench.scoring.measures import Counts
from lvlm_guard.bench.scoring.scores import CaptionCounts, count_caption, parse_yes_no
from lvlm_guard.deprecation import moved_names
from lvlm_guard.testbed.reading import WorldReading
from lvlm_guard.testbed.world.reading import DRAWN

CAPTION = "caption"
"""Kind of the items that ask for a description."""

Count = Callable[[AnsweredItem, WorldReading], Counts]
Choice = Callable[[AnsweredItem], bool]


def is_right(answer: AnsweredItem, world: WorldReading = DRAWN) -> bool:
    """Whether a short answer says what is true."""
    truth, kind = answer.item.truth, answer.item.kind
    if kind in world.answers:
        return world.read_word(kind, answer.text) == truth
    return parse_yes_no(answer.text) == (truth == "yes")


def caption_counts(answer: AnsweredItem, world: WorldReading = DRAWN) -> CaptionCounts:
    """Count the objects that a caption names; colours are not counted."""
    return count_caption(world.named(answer.text), world.present(answer.item), len(answer.text.split()))


@dataclass(frozen=True)
class ColourCounts:
    """Of the truly present objects that a caption names with a colour: how many, and how many in a wrong one."""

    coloured: int
    wrong: int


def caption_colours(answer: AnsweredItem, world: WorldReading = DRAWN) -> ColourCounts:
    """Count the colours of a caption; objects that are not there have no true colour and are left out."""
    coloured = world.coloured(answer.item, answer.text)
    return ColourCounts(len(coloured), sum(spoken_colour != true for spoken_colour, true in coloured))


def has_kind(kind: str, answer: AnsweredItem) -> bool:
    """Whether an answer is about a question of this kind."""
    return answer.item.kind == kind


def is_yes_no(answer: AnsweredItem) -> bool:
    """Whether an answer is about a yes/no question."""
    return answer.item.truth in ("yes", "no")


def asks_yes_no(level: str, answer: AnsweredItem) -> bool:
    """Whether an answer is about a yes/no question of a level."""
    return is_yes_no(answer) and answer.item.level == level


def has_level(level: str, answer: AnsweredItem) -> bool:
    """Whether an answer is about a question of a level, not a caption."""
    return answer.item.level == level and answer.item.kind != CAPTION


def asks_for(negative: str, answer: AnsweredItem) -> bool:
    """Whether it is about an object that is there, or one that is absent in this way."""
    item = answer.item
    return item.kind == "existence" and (item.truth == "yes" or item.extra["negative"] == negative)


def asks_sideways(answer: AnsweredItem) -> bool:
    """Whether an answer is about left and right."""
    return answer.item.kind in ("relation", "choice")


def has_habit(answer: AnsweredItem) -> bool:
    """Whether an answer is about a question that habit answers, rightly or wrongly."""
    return answer.item.kind != CAPTION and answer.item.extra["habit"] is not None


def is_habitual(answer: AnsweredItem) -> bool:
    """Whether the truth of a question is what habit says."""
    return bool(answer.item.truth == answer.item.extra["habit"])


def is_caption(answer: AnsweredItem) -> bool:
    """Whether an answer is a description."""
    return answer.item.kind == CAPTION


def keeps_habits(answer: AnsweredItem, world: WorldReading = DRAWN) -> bool:
    """Whether the scene of a caption has nothing unusual to name."""
    return world.keeps_habits(answer.item)


def describes(level: str, answer: AnsweredItem) -> bool:
    """Whether it is a caption of a scene that breaks a habit of this level, or none."""
    return answer.item.kind == CAPTION and answer.item.extra["broken"] in (None, level)


def count_right(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return (1 where the answer is right, 1)."""
    return float(is_right(answer, world)), 1.0


def count_yes_no(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:  # noqa: ARG001 - every count takes the world
    """Return (right yes, all yes, right no, all no, said yes)."""
    row = yes_no_counts([parse_yes_no(answer.text)], [answer.item.truth == "yes"])[0]
    return tuple(float(count) for count in row)


BALANCED: tuple[Count, Statistic] = (count_yes_no, mean_share)


def count_by_habit(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return `CELLS` counts of an answer to a question with a habit."""
    return _count_half(answer, 0, 1, world)


def count_by_level(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return `CELLS` counts for each level."""
    return _count_half(answer, LEVELS.index(answer.item.level), len(LEVELS), world)


_SIDES = {"yes": True, "left": True, "above": True, "no": False, "right": False, "below": False}
"""The truths of questions with two possible answers, and on which side they count."""


def _count_half(answer: AnsweredItem, level: int, levels: int, world: WorldReading) -> Counts:
    right, habitual = is_right(answer, world), is_habitual(answer)
    side = _SIDES.get(answer.item.truth)
    return count_half(right=right, habitual=habitual, side=side, level=level, levels=levels)


def count_unread(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:  # noqa: ARG001 - as above
    """Return (1 where the answer says neither yes nor no, 1)."""
    return float(parse_yes_no(answer.text) is None), 1.0


def count_absent(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return (named objects that are absent, named objects)."""
    counts = caption_counts(answer, world)
    return float(counts.absent), float(counts.named)


def count_spoilt(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return (1 where an absent object is named, 1)."""
    return float(caption_counts(answer, world).absent > 0), 1.0


def count_named(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return (present objects that are named, present objects)."""
    counts = caption_counts(answer, world)
    return float(counts.found), float(counts.present)


def count_words(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return (words and marks, 1)."""
    return float(caption_counts(answer, world).words), 1.0


def count_miscoloured(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return (named in a wrong colour, named with a colour)."""
    counts = caption_colours(answer, world)
    return float(counts.wrong), float(counts.coloured)


def count_expected(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return (named absent objects that habit expects, named objects)."""
    named, expected = world.named(answer.text), world.expected(answer.item.truth)
    return float(sum(name in expected for name in named)), float(len(named))


def count_unexpected(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return (named absent objects that habit does not expect, named objects)."""
    counts, (expected, named) = caption_counts(answer, world), count_expected(answer, world)
    return counts.absent - expected, named


def count_named_by_habit(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return (named, present) of the objects that habit puts there, then of the others: lone ones and intruders."""
    present, habitual = world.present(answer.item), world.habitual(answer.item.truth)
    named = set(world.named(answer.text))
    sides = (habitual, present - habitual)
    return tuple(float(count) for side in sides for count in (len(side & named), len(side)))


def count_miscoloured_by_habit(answer: AnsweredItem, world: WorldReading = DRAWN) -> Counts:
    """Return (in a wrong colour, named with a colour) of the objects in their typical colour, then of the others."""
    true = world.colours(answer.item)
    counts = [0.0] * 4
    for spoken_colour, name in world.mentions(answer.text):
        if spoken_colour is not None and name in true:
            at = 0 if true[name] == world.typical_colour[name] else 2
            counts[at] += spoken_colour != true[name]
            counts[at + 1] += 1
    return tuple(counts)


__getattr__ = moved_names(
    __name__,
    {
        "suite_measures": "lvlm_guard.testbed.measures:suite_measures",
        "build_measure": "lvlm_guard.testbed.measures:build_measure",
    },
)
