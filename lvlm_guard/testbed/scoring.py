"""How answers about drawn scenes are read and counted; `lvlm_guard.testbed.measures` makes scores of the counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.scoring.habits import count_half
from lvlm_guard.bench.scoring.intervals import Statistic, mean_share, yes_no_counts
from lvlm_guard.bench.scoring.measures import Counts
from lvlm_guard.bench.scoring.scores import CaptionCounts, count_caption, parse_word, parse_yes_no
from lvlm_guard.deprecation import moved_names
from lvlm_guard.testbed.world.habits import BACKGROUNDS, COLOUR_NAMES, HOME, PARTNER, TYPICAL_COLOUR
from lvlm_guard.testbed.world.language import mentions

CAPTION = "caption"
"""Kind of the items that ask for a description."""

Count = Callable[[AnsweredItem], Counts]
Choice = Callable[[AnsweredItem], bool]

_WORDS: Mapping[str, Sequence[str]] = {"colour": COLOUR_NAMES, "choice": ("left", "right")}
"""The answers of the questions that are not yes/no, by kind."""


def is_right(answer: AnsweredItem) -> bool:
    """Whether a short answer says what is true."""
    truth, kind = answer.item.truth, answer.item.kind
    if kind in _WORDS:
        return parse_word(answer.text, _WORDS[kind]) == truth
    return parse_yes_no(answer.text) == (truth == "yes")


def caption_counts(answer: AnsweredItem) -> CaptionCounts:
    """Count the objects that a caption names; colours are not counted."""
    named = [category for _, category in mentions(answer.text)]
    present = {category for _, category in mentions(answer.item.truth)}
    return count_caption(named, present, len(answer.text.split()))


@dataclass(frozen=True)
class ColourCounts:
    """Of the truly present objects that a caption names with a colour: how many, and how many in a wrong one."""

    coloured: int
    wrong: int


def caption_colours(answer: AnsweredItem) -> ColourCounts:
    """Count the colours of a caption; objects that are not there have no true colour and are left out."""
    true = {category: colour for colour, category in mentions(answer.item.truth)}
    coloured = [(colour, category) for colour, category in mentions(answer.text) if category in true]
    return ColourCounts(len(coloured), sum(true[category] != colour for colour, category in coloured))


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


def keeps_habits(answer: AnsweredItem) -> bool:
    """Whether the scene of a caption has nothing unusual to name: whole pairs at home, in their typical colours."""
    named = mentions(answer.item.truth)
    habitual = habitual_objects(answer)
    return all(category in habitual and colour == TYPICAL_COLOUR[category] for colour, category in named)


def habitual_objects(answer: AnsweredItem) -> set[str]:
    """Return the categories in the scene of a caption that habit puts there: at home, with their partner."""
    present = {category for _, category in mentions(answer.item.truth)}
    return {name for name in present if PARTNER[name] in present and HOME[name] == _background(answer)}


def expected_objects(answer: AnsweredItem) -> set[str]:
    """Return the categories that habit puts into the scene of a caption and that are not there: partners of what is, at home."""
    present = {category for _, category in mentions(answer.item.truth)}
    return {PARTNER[name] for name in present if PARTNER[name] not in present and HOME[name] == _background(answer)}


def _background(answer: AnsweredItem) -> str:
    return next(word for word in answer.item.truth.split() if word in BACKGROUNDS)


def describes(level: str, answer: AnsweredItem) -> bool:
    """Whether it is a caption of a scene that breaks a habit of this level, or none."""
    return answer.item.kind == CAPTION and answer.item.extra["broken"] in (None, level)


def count_right(answer: AnsweredItem) -> Counts:
    """Return (1 where the answer is right, 1)."""
    return float(is_right(answer)), 1.0


def count_yes_no(answer: AnsweredItem) -> Counts:
    """Return (right yes, all yes, right no, all no, said yes)."""
    row = yes_no_counts([parse_yes_no(answer.text)], [answer.item.truth == "yes"])[0]
    return tuple(float(count) for count in row)


BALANCED: tuple[Count, Statistic] = (count_yes_no, mean_share)


def count_by_habit(answer: AnsweredItem) -> Counts:
    """Return `CELLS` counts of an answer to a question with a habit."""
    return _count_half(answer, 0, 1)


def count_by_level(answer: AnsweredItem) -> Counts:
    """Return `CELLS` counts for each level."""
    return _count_half(answer, LEVELS.index(answer.item.level), len(LEVELS))


def _count_half(answer: AnsweredItem, level: int, levels: int) -> Counts:
    item = answer.item
    side = item.truth in ("yes", "left") if item.kind != "colour" else None
    return count_half(right=is_right(answer), habitual=is_habitual(answer), side=side, level=level, levels=levels)


def count_unread(answer: AnsweredItem) -> Counts:
    """Return (1 where the answer says neither yes nor no, 1)."""
    return float(parse_yes_no(answer.text) is None), 1.0


def count_absent(answer: AnsweredItem) -> Counts:
    """Return (named objects that are absent, named objects)."""
    counts = caption_counts(answer)
    return float(counts.absent), float(counts.named)


def count_spoilt(answer: AnsweredItem) -> Counts:
    """Return (1 where an absent object is named, 1)."""
    return float(caption_counts(answer).absent > 0), 1.0


def count_named(answer: AnsweredItem) -> Counts:
    """Return (present objects that are named, present objects)."""
    counts = caption_counts(answer)
    return float(counts.found), float(counts.present)


def count_words(answer: AnsweredItem) -> Counts:
    """Return (words and marks, 1)."""
    return float(caption_counts(answer).words), 1.0


def count_miscoloured(answer: AnsweredItem) -> Counts:
    """Return (named in a wrong colour, named with a colour)."""
    counts = caption_colours(answer)
    return float(counts.wrong), float(counts.coloured)


def count_expected(answer: AnsweredItem) -> Counts:
    """Return (named absent objects that habit expects, named objects)."""
    named = [category for _, category in mentions(answer.text)]
    expected = expected_objects(answer)
    return float(sum(name in expected for name in named)), float(len(named))


def count_unexpected(answer: AnsweredItem) -> Counts:
    """Return (named absent objects that habit does not expect, named objects)."""
    counts, (expected, named) = caption_counts(answer), count_expected(answer)
    return counts.absent - expected, named


def count_named_by_habit(answer: AnsweredItem) -> Counts:
    """Return (named, present) of the objects that habit puts there, then of the others: lone ones and intruders."""
    present, habitual = {category for _, category in mentions(answer.item.truth)}, habitual_objects(answer)
    named = {category for _, category in mentions(answer.text)}
    sides = (habitual, present - habitual)
    return tuple(float(count) for side in sides for count in (len(side & named), len(side)))


def count_miscoloured_by_habit(answer: AnsweredItem) -> Counts:
    """Return (in a wrong colour, named with a colour) of the objects in their typical colour, then of the others."""
    true = {category: colour for colour, category in mentions(answer.item.truth)}
    counts = [0.0] * 4
    for colour, category in mentions(answer.text):
        if category in true:
            at = 0 if true[category] == TYPICAL_COLOUR[category] else 2
            counts[at] += colour != true[category]
            counts[at + 1] += 1
    return tuple(counts)


__getattr__ = moved_names(
    __name__,
    {
        "suite_measures": "lvlm_guard.testbed.measures:suite_measures",
        "build_measure": "lvlm_guard.testbed.measures:build_measure",
    },
)
