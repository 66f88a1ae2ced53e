"""Every measure of the drawn scenes: habit-balanced accuracy with its halves first, then what has to be read beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

from lvlm_guard.bench.items import LEVELS, AnsweredItem
from lvlm_guard.bench.scoring import habits
from lvlm_guard.bench.scoring.intervals import (
    Share,
    Statistic,
    accuracy,
    f1,
    harmonic_share,
    mean_share,
    share,
    yes_ratio,
)
from lvlm_guard.bench.scoring.measures import Counts, Measure, each
from lvlm_guard.testbed.reading import WorldReading
from lvlm_guard.testbed.scoring import (
    BALANCED,
    Choice,
    Count,
    asks_for,
    asks_sideways,
    asks_yes_no,
    count_absent,
    count_by_habit,
    count_by_level,
    count_expected,
    count_miscoloured,
    count_miscoloured_by_habit,
    count_named,
    count_named_by_habit,
    count_right,
    count_spoilt,
    count_unexpected,
    count_unread,
    count_words,
    count_yes_no,
    describes,
    has_habit,
    has_kind,
    has_level,
    is_caption,
    is_habitual,
    is_yes_no,
    keeps_habits,
)
from lvlm_guard.testbed.world.questions import NEGATIVES
from lvlm_guard.testbed.world.reading import DRAWN

Design = Literal["balanced", "one_sided"]

NO_CLAIM = "one-sided: not for claims"
"""Added to the titles of measures that can be raised without looking at a picture."""

_FIRST, _SECOND = Share((0,), (1,)), Share((2,), (3,))
_Describes = Callable[[str], Choice]
"""Which captions count at a level."""


def build_measure(
    name: str,
    level: str,
    title: str,
    chosen: Choice,
    count: Count,
    statistic: Statistic = share,
    *,
    higher_is_better: bool | None = True,
    world: WorldReading = DRAWN,
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
        world: How the answers are read.
    """

    def counted(answer: AnsweredItem) -> Counts | None:
        return count(answer, world) if chosen(answer) else None

    binary = count in (count_right, count_spoilt, count_unread)
    return Measure(name, level, title, each(counted), statistic, higher_is_better, binary=binary)


def habit_measures(
    level: str, chosen: Choice, name: str = "", title: str = "", world: WorldReading = DRAWN
) -> list[Measure]:
    """Build habit-balanced accuracy and its two halves.

    Args:
        level: Their level; over "all", each level counts the same.
        chosen: Which answers count, of those that habit answers.
        name: Ends their names.
        title: Ends their titles.
        world: How the answers are read.
    """
    count = count_by_level if level == "all" else count_by_habit
    return [
        build_measure(
            f"{begins}_{name}" if name else begins,
            level,
            f"{words}, {title}" if title else words,
            partial(_is_asked, begins, chosen),
            count,
            statistic,
            world=world,
        )
        for begins, statistic, words in habits.STATISTICS
    ]


def _is_asked(measure: str, chosen: Choice, answer: AnsweredItem) -> bool:
    """Whether an answer is one of those that a habit measure counts: all of them, or those of its half."""
    if not has_habit(answer) or not chosen(answer):
        return False
    return measure == habits.NAMES[0] or measure == habits.NAMES[1 if is_habitual(answer) else 2]


def suite_measures(design: Design = "balanced", world: WorldReading = DRAWN) -> tuple[Measure, ...]:
    """Return every measure of a design of the suite, its headline first: habit-balanced accuracy over all levels.

    The headline of the one-sided design is balanced accuracy for objects, and its measures say that they are no ground for claims.
    """
    if design == "one_sided":
        every = (
            *_object_measures(),
            *_caption_measures(_describes_level, world),
            *_attribute_measures(_describes_level, world),
            *_relation_measures(world),
            *_overall_measures(),
        )
        return tuple(replace(measure, title=f"{measure.title} ({NO_CLAIM})") for measure in every)
    by_level = {level: habit_measures(level, partial(has_level, level), level, world=world) for level in LEVELS}
    return (
        *habit_measures("all", has_habit, world=world),
        *by_level["object"],
        *_object_measures(),
        *_caption_measures(_describes_any, world),
        *_caption_habit_measures(world),
        *by_level["attribute"],
        *_attribute_measures(_describes_any, world),
        *_colour_habit_measures(world),
        *by_level["relation"],
        *_relation_measures(world),
        *_overall_measures(),
    )


def _describes_level(level: str) -> Choice:
    return partial(describes, level)


def _describes_any(level: str) -> Choice:
    del level
    return is_caption


def _object_measures() -> list[Measure]:
    chosen = partial(asks_yes_no, "object")
    kinds = [
        build_measure(
            f"balanced_{kind}", "object", f"balanced accuracy, {kind} negatives", partial(asks_for, kind), *BALANCED
        )
        for kind in NEGATIVES
    ]
    return [
        build_measure("balanced_object", "object", "balanced accuracy", chosen, *BALANCED),
        *kinds,
        build_measure("f1_object", "object", "F1", chosen, count_yes_no, f1),
        build_measure(
            "harmonic_object", "object", "harmonic mean of both recalls", chosen, count_yes_no, harmonic_share
        ),
        build_measure(
            "yes_ratio_object", "object", "share of yes", chosen, count_yes_no, yes_ratio, higher_is_better=None
        ),
    ]


def _caption_measures(described: _Describes, world: WorldReading) -> list[Measure]:
    chosen = described("object")
    build = partial(build_measure, world=world)
    return [
        build("chair_i", "object", "named objects that are absent", chosen, count_absent, higher_is_better=False),
        build("chair_s", "object", "captions with an absent object", chosen, count_spoilt, higher_is_better=False),
        build("recall", "object", "present objects that are named", chosen, count_named),
        build("length", "object", "words and marks of a caption", chosen, count_words, higher_is_better=None),
    ]


def _caption_habit_measures(world: WorldReading) -> list[Measure]:
    """Inventions by whether habit expects them, recall by whether habit puts the object there, and both by kind of scene."""
    build = partial(build_measure, world=world)
    return [
        build(
            "chair_expected", "object", "named objects that are absent and habitual partners of present ones",
            is_caption, count_expected, higher_is_better=False,
        ),
        build(
            "chair_unexpected", "object", "named objects that are absent, others",
            is_caption, count_unexpected, higher_is_better=False,
        ),
        build(
            "recall_habit_true", "object", "present objects that are named, whole pairs at home",
            is_caption, count_named_by_habit, _FIRST,
        ),
        build(
            "recall_habit_breaking", "object", "present objects that are named, lone ones and intruders",
            is_caption, count_named_by_habit, _SECOND,
        ),
        build(
            "habit_balanced_recall", "object", "mean of the recall of both",
            is_caption, count_named_by_habit, mean_share,
        ),
        *(measure for kind, keeping in _SCENES.items() for measure in _measures_of_scenes(kind, keeping, world)),
    ]  # fmt: skip


_SCENES: Mapping[str, bool] = {"keeping": True, "breaking": False}
"""Scenes that keep the habits a caption speaks of, and scenes that break one."""


def _measures_of_scenes(kind: str, keeping: bool, world: WorldReading) -> list[Measure]:
    build = partial(build_measure, world=world)

    def chosen(answer: AnsweredItem) -> bool:
        return is_caption(answer) and keeps_habits(answer, world) == keeping

    return [
        build(
            f"chair_i_{kind}", "object", f"named objects that are absent, in scenes {kind} habits",
            chosen, count_absent, higher_is_better=False,
        ),
        build(
            f"recall_{kind}", "object", f"present objects that are named, in scenes {kind} habits", chosen, count_named
        ),
    ]  # fmt: skip


def _colour_habit_measures(world: WorldReading) -> list[Measure]:
    build = partial(build_measure, world=world)
    return [
        build(
            f"miscoloured_habit_{half}", "attribute", f"named objects in a wrong colour, {words} in their typical one",
            is_caption, count_miscoloured_by_habit, statistic, higher_is_better=False,
        )
        for half, words, statistic in (("true", "those", _FIRST), ("breaking", "those not", _SECOND))
    ]  # fmt: skip


def _attribute_measures(described: _Describes, world: WorldReading) -> list[Measure]:
    build = partial(build_measure, world=world)
    return [
        build("accuracy_attribute", "attribute", "accuracy", partial(has_level, "attribute"), count_right),
        *_yes_no_measures("attribute"),
        build(
            "miscoloured",
            "attribute",
            "named objects in a wrong colour",
            described("attribute"),
            count_miscoloured,
            higher_is_better=False,
        ),
    ]


def _relation_measures(world: WorldReading) -> list[Measure]:
    build = partial(build_measure, world=world)
    return [
        build("accuracy_relation", "relation", "accuracy, left or right", asks_sideways, count_right),
        *_yes_no_measures("relation"),
        build(
            "accuracy_vertical",
            "relation",
            "accuracy, above or below (no habit)",
            partial(has_kind, "vertical"),
            count_right,
        ),
    ]


def _yes_no_measures(level: str) -> list[Measure]:
    chosen = partial(asks_yes_no, level)
    return [
        build_measure(f"balanced_{level}", level, "balanced accuracy of yes and no", chosen, *BALANCED),
        build_measure(f"f1_{level}", level, "F1 of yes and no", chosen, count_yes_no, f1),
        build_measure(
            f"harmonic_{level}", level, "harmonic mean of both recalls", chosen, count_yes_no, harmonic_share
        ),
        build_measure(
            f"yes_ratio_{level}", level, "share of yes", chosen, count_yes_no, yes_ratio, higher_is_better=None
        ),
    ]


def _overall_measures() -> list[Measure]:
    return [
        build_measure("accuracy", "all", "accuracy of yes and no", is_yes_no, count_yes_no, accuracy),
        build_measure("f1", "all", "F1", is_yes_no, count_yes_no, f1),
        build_measure("harmonic", "all", "harmonic mean of both recalls", is_yes_no, count_yes_no, harmonic_share),
        build_measure("yes_ratio", "all", "share of yes", is_yes_no, count_yes_no, yes_ratio, higher_is_better=None),
        build_measure("unread", "all", "neither yes nor no", is_yes_no, count_unread, higher_is_better=False),
    ]
