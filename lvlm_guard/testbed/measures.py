"""What is counted in answers, and how the counts become a score with an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lvlm_guard.bench.scoring.intervals import (
    Interval,
    Statistic,
    Totals,
    by_cluster,
    interval,
    mean_share,
    paired_difference,
    share,
)
from lvlm_guard.testbed.evaluate import Answer, caption_colours, caption_counts, is_right
from lvlm_guard.testbed.world.questions import NEGATIVES

Counts = tuple[float, ...]


@dataclass(frozen=True)
class Measure:
    """Which answers count, what one answer counts for, and the score that is made of all counts of all scenes."""

    title: str
    chosen: Callable[[Answer], bool]
    count: Callable[[Answer], Counts]
    statistic: Statistic = share
    higher_is_better: bool = True

    @property
    def level(self) -> str:
        """The level it belongs to: the first word of the title."""
        return self.title.split(",")[0]

    def verdict(self, change: Interval) -> str:
        """What a difference shows: "better" or "worse" where its interval leaves out zero, else "unclear"."""
        if change.low > 0:
            return "better" if self.higher_is_better else "worse"
        if change.high < 0:
            return "worse" if self.higher_is_better else "better"
        return "unclear"

    def totals(self, answers: Sequence[Answer]) -> Totals:
        """Summed counts, one row per scene; no rows where nothing is chosen."""
        chosen = [answer for answer in answers if self.chosen(answer)]
        if not chosen:
            return np.zeros((0, 1))
        return by_cluster([answer.scene for answer in chosen], [self.count(answer) for answer in chosen])


def _has_level(level: str, answer: Answer) -> bool:
    return answer.level == level


def _has_kind(kind: str, answer: Answer) -> bool:
    return answer.kind == kind


def _is_yes_no(answer: Answer) -> bool:
    return answer.truth in ("yes", "no")


def _asks_with(negative: str, answer: Answer) -> bool:
    return answer.kind == "existence" and (answer.truth == "yes" or answer.negative == negative)


def _asks_sideways(answer: Answer) -> bool:
    return answer.kind in ("relation", "choice")


def _tells(level: str, answer: Answer) -> bool:
    """Whether it is a caption of a scene that breaks a habit of this level, or none."""
    return answer.level == "caption" and answer.broken in (None, level)


def _sides(answer: Answer) -> Counts:
    right, positive = float(is_right(answer)), float(answer.truth == "yes")
    return right * positive, positive, right * (1 - positive), 1 - positive


def _right(answer: Answer) -> Counts:
    return float(is_right(answer)), 1.0


def _absent(answer: Answer) -> Counts:
    counts = caption_counts(answer)
    return counts.absent, counts.named


def _spoilt(answer: Answer) -> Counts:
    return float(caption_counts(answer).absent > 0), 1.0


def _found(answer: Answer) -> Counts:
    counts = caption_counts(answer)
    return counts.found, counts.present


def _miscoloured(answer: Answer) -> Counts:
    counts = caption_colours(answer)
    return counts.wrong, counts.coloured


_OBJECT = Measure("object, balanced accuracy", partial(_has_level, "object"), _sides, mean_share)
_NAMED = partial(_tells, "object")

DEMO_MEASURES: Mapping[str, Measure] = {
    "object": _OBJECT,
    "attribute": Measure("attribute, accuracy", partial(_has_level, "attribute"), _right),
    "relation": Measure("relation, left or right, accuracy", _asks_sideways, _right),
    "caption": Measure("caption, named objects that are absent", _NAMED, _absent, higher_is_better=False),
    "caption_spoilt": Measure("caption, captions with an absent object", _NAMED, _spoilt, higher_is_better=False),
    "caption_recall": Measure("caption, present objects that are named", _NAMED, _found),
    "caption_colour": Measure(
        "caption, named objects in a wrong colour", partial(_tells, "attribute"), _miscoloured, higher_is_better=False
    ),
}
"""One row per level; `caption` is CHAIR_i and `caption_spoilt` CHAIR_s. Recall is beside them: silence is easy."""

CARD_MEASURES: Mapping[str, Measure] = {
    **DEMO_MEASURES,
    **{
        f"object_{negative}": replace(
            _OBJECT, title=f"object, {negative} negatives", chosen=partial(_asks_with, negative)
        )
        for negative in NEGATIVES
    },
    "colour": Measure("what colour, accuracy", partial(_has_kind, "colour"), _right),
    "is_colour": Measure("is it this colour, accuracy", partial(_has_kind, "is_colour"), _right),
    "left_right": Measure("left or right of, yes/no, accuracy", partial(_has_kind, "relation"), _right),
    "choice": Measure("left or right, to choose, accuracy", partial(_has_kind, "choice"), _right),
    "vertical": Measure("above or below (no habit), accuracy", partial(_has_kind, "vertical"), _right),
}

NATURAL = Measure("yes/no in training proportions, accuracy", _is_yes_no, _right)


@dataclass(frozen=True)
class Comparison:
    """Plain and guarded on the same prompts; `difference` is guarded minus plain. `n` counts prompts."""

    plain: Interval
    guarded: Interval
    difference: Interval
    n: int


def compare(
    plain: Sequence[Answer],
    guarded: Sequence[Answer],
    seed: int = 0,
    measures: Mapping[str, Measure] = DEMO_MEASURES,
) -> dict[str, Comparison]:
    """Every measure over the same prompts answered twice, with intervals clustered by scene."""
    results = {}
    for name, measure in measures.items():
        before, after = measure.totals(plain), measure.totals(guarded)
        if len(before):
            results[name] = Comparison(
                plain=interval(before, measure.statistic, seed=seed),
                guarded=interval(after, measure.statistic, seed=seed),
                difference=paired_difference(before, after, measure.statistic, seed=seed),
                n=sum(measure.chosen(answer) for answer in plain),
            )
    return results
