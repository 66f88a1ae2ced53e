"""The figures that the demo, the choice of its stack and the model card show: measures of the suite under their own titles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from lvlm_guard.bench.scoring.intervals import Interval
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.testbed.scoring import build_measure, count_right, has_kind, is_yes_no, suite_measures
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


DEMO_FIGURES: Mapping[str, Figure] = {
    "object": Figure("object, balanced accuracy", _SUITE["balanced_object"]),
    "attribute": Figure("attribute, accuracy", _SUITE["accuracy_attribute"]),
    "relation": Figure("relation, left or right, accuracy", _SUITE["accuracy_relation"]),
    "caption": Figure("caption, named objects that are absent", _SUITE["chair_i"]),
    "caption_spoilt": Figure("caption, captions with an absent object", _SUITE["chair_s"]),
    "caption_recall": Figure("caption, present objects that are named", _SUITE["recall"]),
    "caption_colour": Figure("caption, named objects in a wrong colour", _SUITE["miscoloured"]),
}
"""One row per level; `caption` is CHAIR_i and `caption_spoilt` CHAIR_s. Recall is beside them: silence is easy."""


def _of_kind(kind: str, level: str, title: str) -> Figure:
    return Figure(title, build_measure(kind, level, title, partial(has_kind, kind), count_right))


CARD_FIGURES: Mapping[str, Figure] = {
    **DEMO_FIGURES,
    **{
        f"object_{negative}": Figure(f"object, {negative} negatives", _SUITE[f"balanced_{negative}"])
        for negative in NEGATIVES
    },
    "colour": _of_kind("colour", "attribute", "what colour, accuracy"),
    "is_colour": _of_kind("is_colour", "attribute", "is it this colour, accuracy"),
    "left_right": _of_kind("relation", "relation", "left or right of, yes/no, accuracy"),
    "choice": _of_kind("choice", "relation", "left or right, to choose, accuracy"),
    "vertical": Figure("above or below (no habit), accuracy", _SUITE["accuracy_vertical"]),
}

NATURAL = Figure(
    "yes/no in training proportions, accuracy",
    build_measure("natural", "all", "yes/no in training proportions, accuracy", is_yes_no, count_right),
)
