"""The figures that the demo, the choice of its stack and the model card show: measures of the suite under their own titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lvlm_guard.bench.scoring import habits
from lvlm_guard.bench.scoring.intervals import Interval
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.testbed.measures import build_measure, habit_measures, suite_measures
from lvlm_guard.testbed.scoring import count_right, has_kind, is_yes_no
from lvlm_guard.testbed.world.questions import NEGATIVES

_SUITE: Mapping[str, Measure] = {measure.name: measure for measure in suite_measures()}


@dataclass(frozen=True)
class Figure:
    """A measure and what it is called where levels stand below each other."""

    title: str
    measure: Measure

    @property
    def level(self) -> str:
        """The level it is shown under: the first words of the title."""
        return self.title.split(",")[0]

    @property
    def aim(self) -> str:
        """Which way is better, in words."""
        return "higher is better" if self.measure.higher_is_better else "lower is better"

    def verdict(self, change: Interval) -> str:
        """Return "better" or "worse" where the interval of a difference leaves out zero, else "unclear"."""
        higher_is_better = bool(self.measure.higher_is_better)
        if change.low > 0:
            return "better" if higher_is_better else "worse"
        if change.high < 0:
            return "worse" if higher_is_better else "better"
        return "unclear"


def _with_halves(name: str, title: str, measures: Sequence[Measure]) -> dict[str, Figure]:
    """Name habit-balanced accuracy and its halves `name`, `name`_true and `name`_breaking."""
    wordings = (words for _, _, words in habits.STATISTICS)
    names = (name, f"{name}_true", f"{name}_breaking")
    return {
        figure: Figure(f"{title}, {words}", measure)
        for figure, words, measure in zip(names, wordings, measures, strict=True)
    }


def _of_level(level: str, title: str) -> dict[str, Figure]:
    ending = "" if level == "all" else f"_{level}"
    return _with_halves(level, title, [_SUITE[f"{begins}{ending}"] for begins in habits.NAMES])


DEMO_FIGURES: Mapping[str, Figure] = {
    **_of_level("all", "all levels"),
    **_of_level("object", "object"),
    **_of_level("attribute", "attribute"),
    **_of_level("relation", "relation"),
    "caption": Figure("caption, named objects that are absent", _SUITE["chair_i"]),
    "caption_spoilt": Figure("caption, captions with an absent object", _SUITE["chair_s"]),
    "caption_recall": Figure("caption, present objects that are named", _SUITE["recall"]),
    "caption_recall_breaking": Figure(
        "caption, lone objects and intruders that are named", _SUITE["recall_habit_breaking"]
    ),
    "caption_colour": Figure("caption, named objects in a wrong colour", _SUITE["miscoloured"]),
}
"""Habit-balanced accuracy of each level (`object`) and its halves (`object_true`, `object_breaking`); `caption` is CHAIR_i and
`caption_spoilt` CHAIR_s. Recall is beside them: silence is easy."""


def _of_kind(kind: str, level: str, title: str, name: str = "") -> dict[str, Figure]:
    return _with_halves(name or kind, title, habit_measures(level, partial(has_kind, kind), name or kind))


CARD_FIGURES: Mapping[str, Figure] = {
    **DEMO_FIGURES,
    **{
        f"object_{negative}": Figure(f"object, balanced accuracy, {negative} negatives", _SUITE[f"balanced_{negative}"])
        for negative in NEGATIVES
    },
    **_of_kind("colour", "attribute", "what colour"),
    **_of_kind("is_colour", "attribute", "is it this colour"),
    **_of_kind("relation", "relation", "left or right of, yes/no", "left_right"),
    **_of_kind("choice", "relation", "left or right, to choose"),
    "vertical": Figure("above or below (no habit), accuracy", _SUITE["accuracy_vertical"]),
    "caption_expected": Figure("caption, named objects that are absent habitual partners", _SUITE["chair_expected"]),
    "caption_keeping": Figure(
        "caption, named objects that are absent, in scenes keeping habits", _SUITE["chair_i_keeping"]
    ),
    "caption_breaking": Figure(
        "caption, named objects that are absent, in scenes breaking habits", _SUITE["chair_i_breaking"]
    ),
    "caption_recall_true": Figure("caption, objects of whole pairs that are named", _SUITE["recall_habit_true"]),
}

NATURAL = Figure(
    "yes/no in training proportions, accuracy",
    build_measure("natural", "all", "yes/no in training proportions, accuracy", is_yes_no, count_right),
)
