"""How answers about drawn scenes are read and counted, and every measure that the suite makes of the counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.scoring.intervals import (
    Statistic,
    accuracy,
    f1,
    harmonic_share,
    mean_share,
    share,
    yes_no_counts,
    yes_ratio,
)
from lvlm_guard.bench.scoring.measures import Counts, Measure, each
from lvlm_guard.bench.scoring.scores import CaptionCounts, count_caption, parse_word, parse_yes_no
from lvlm_guard.testbed.world.habits import COLOUR_NAMES
from lvlm_guard.testbed.world.language import mentions
from lvlm_guard.testbed.world.questions import NEGATIVES

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


def build_measure(
    name: str,
    level: str,
    title: str,
    chosen: Choice,
    count: Count,
    statistic: Statistic = share,
    *,
    higher_is_better: bool | None = True,
) -> Measure:
    """Build a measure over single answers.

    Args:
        name: Unique within the suite.
        level: Its level, "all" where it spans them.
        title: A few words for people.
        chosen: Whether an answer counts.
        count: What one answer counts for.
        statistic: Maps summed counts to the score.
        higher_is_better: None where neither is.
    """

    def counted(answer: AnsweredItem) -> Counts | None:
        return count(answer) if chosen(answer) else None

    binary = count in (count_right, _count_spoilt, _count_unread)
    return Measure(name, level, title, each(counted), statistic, higher_is_better, binary=binary)


def suite_measures() -> tuple[Measure, ...]:
    """Return every measure of the suite, balanced accuracy for objects first."""
    return (
        *_object_measures(),
        *_caption_measures(),
        *_attribute_measures(),
        *_relation_measures(),
        *_overall_measures(),
    )


def _object_measures() -> list[Measure]:
    chosen = partial(_is_yes_no, "object")
    kinds = [
        build_measure(
            f"balanced_{kind}", "object", f"balanced accuracy, {kind} negatives", partial(_asks, kind), *_BALANCED
        )
        for kind in NEGATIVES
    ]
    return [
        build_measure("balanced_object", "object", "balanced accuracy", chosen, *_BALANCED),
        *kinds,
        build_measure("f1_object", "object", "F1", chosen, _count_yes_no, f1),
        build_measure(
            "harmonic_object", "object", "harmonic mean of both recalls", chosen, _count_yes_no, harmonic_share
        ),
        build_measure(
            "yes_ratio_object", "object", "share of yes", chosen, _count_yes_no, yes_ratio, higher_is_better=None
        ),
    ]


def _caption_measures() -> list[Measure]:
    chosen = partial(_describes, "object")
    return [
        build_measure(
            "chair_i", "object", "named objects that are absent", chosen, _count_absent, higher_is_better=False
        ),
        build_measure(
            "chair_s", "object", "captions with an absent object", chosen, _count_spoilt, higher_is_better=False
        ),
        build_measure("recall", "object", "present objects that are named", chosen, _count_named),
        build_measure("length", "object", "words and marks of a caption", chosen, _count_words, higher_is_better=None),
    ]


def _attribute_measures() -> list[Measure]:
    return [
        build_measure("accuracy_attribute", "attribute", "accuracy", partial(_has_level, "attribute"), count_right),
        *_yes_no_measures("attribute"),
        build_measure(
            "miscoloured",
            "attribute",
            "named objects in a wrong colour",
            partial(_describes, "attribute"),
            _count_miscoloured,
            higher_is_better=False,
        ),
    ]


def _relation_measures() -> list[Measure]:
    return [
        build_measure("accuracy_relation", "relation", "accuracy, left or right", _asks_sideways, count_right),
        *_yes_no_measures("relation"),
        build_measure(
            "accuracy_vertical",
            "relation",
            "accuracy, above or below (no habit)",
            partial(has_kind, "vertical"),
            count_right,
        ),
    ]


def _yes_no_measures(level: str) -> list[Measure]:
    chosen = partial(_is_yes_no, level)
    return [
        build_measure(f"balanced_{level}", level, "balanced accuracy of yes and no", chosen, *_BALANCED),
        build_measure(f"f1_{level}", level, "F1 of yes and no", chosen, _count_yes_no, f1),
        build_measure(
            f"harmonic_{level}", level, "harmonic mean of both recalls", chosen, _count_yes_no, harmonic_share
        ),
        build_measure(
            f"yes_ratio_{level}", level, "share of yes", chosen, _count_yes_no, yes_ratio, higher_is_better=None
        ),
    ]


def _overall_measures() -> list[Measure]:
    return [
        build_measure("accuracy", "all", "accuracy of yes and no", is_yes_no, _count_yes_no, accuracy),
        build_measure("f1", "all", "F1", is_yes_no, _count_yes_no, f1),
        build_measure("harmonic", "all", "harmonic mean of both recalls", is_yes_no, _count_yes_no, harmonic_share),
        build_measure("yes_ratio", "all", "share of yes", is_yes_no, _count_yes_no, yes_ratio, higher_is_better=None),
        build_measure("unread", "all", "neither yes nor no", is_yes_no, _count_unread, higher_is_better=False),
    ]


def has_kind(kind: str, answer: AnsweredItem) -> bool:
    """Whether an answer is about a question of this kind."""
    return answer.item.kind == kind


def is_yes_no(answer: AnsweredItem) -> bool:
    """Whether an answer is about a yes/no question."""
    return answer.item.truth in ("yes", "no")


def _is_yes_no(level: str, answer: AnsweredItem) -> bool:
    return is_yes_no(answer) and answer.item.level == level


def _has_level(level: str, answer: AnsweredItem) -> bool:
    return answer.item.level == level and answer.item.kind != CAPTION


def _asks(negative: str, answer: AnsweredItem) -> bool:
    item = answer.item
    return item.kind == "existence" and (item.truth == "yes" or item.extra["negative"] == negative)


def _asks_sideways(answer: AnsweredItem) -> bool:
    return answer.item.kind in ("relation", "choice")


def _describes(level: str, answer: AnsweredItem) -> bool:
    """Whether it is a caption of a scene that breaks a habit of this level, or none."""
    return answer.item.kind == CAPTION and answer.item.extra["broken"] in (None, level)


def count_right(answer: AnsweredItem) -> Counts:
    """Return (1 where the answer is right, 1)."""
    return float(is_right(answer)), 1.0


def _count_yes_no(answer: AnsweredItem) -> Counts:
    """Return (right yes, all yes, right no, all no, said yes)."""
    row = yes_no_counts([parse_yes_no(answer.text)], [answer.item.truth == "yes"])[0]
    return tuple(float(count) for count in row)


_BALANCED: tuple[Count, Statistic] = (_count_yes_no, mean_share)


def _count_unread(answer: AnsweredItem) -> Counts:
    return float(parse_yes_no(answer.text) is None), 1.0


def _count_absent(answer: AnsweredItem) -> Counts:
    counts = caption_counts(answer)
    return float(counts.absent), float(counts.named)


def _count_spoilt(answer: AnsweredItem) -> Counts:
    return float(caption_counts(answer).absent > 0), 1.0


def _count_named(answer: AnsweredItem) -> Counts:
    counts = caption_counts(answer)
    return float(counts.found), float(counts.present)


def _count_words(answer: AnsweredItem) -> Counts:
    return float(caption_counts(answer).words), 1.0


def _count_miscoloured(answer: AnsweredItem) -> Counts:
    counts = caption_colours(answer)
    return float(counts.wrong), float(counts.coloured)
