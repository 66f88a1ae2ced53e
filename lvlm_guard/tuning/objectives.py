"""What a search makes better: habit-balanced accuracy level by level, and inventions of captions, at no loss of recall."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lvlm_guard.bench.items import AnsweredItem, Level
from lvlm_guard.bench.reporting.level_verdicts import CAPTIONS
from lvlm_guard.bench.reporting.results import compare_measure
from lvlm_guard.bench.reporting.verdicts import HABIT_BALANCED
from lvlm_guard.bench.scoring.frontier import find_caption_measures
from lvlm_guard.bench.scoring.intervals import Interval
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.errors import InputError, nearest

RECALL_LOSS = 0.03
"""How much less of what is there captions may name."""

RESAMPLES = 400
"""Bootstrap resamples of a difference on calibration items."""

_WIDTH = 3.92
"""A 95 % interval over its standard error."""


@dataclass(frozen=True)
class Objectives:
    """The measures that decide.

    Args:
        accuracy: Measures by level, higher is better.
        inventions: Of captions, lower is better; None where there are none.
        recall: Of captions; None where there are none.
    """

    accuracy: Mapping[str, Measure]
    inventions: Measure | None = None
    recall: Measure | None = None

    @property
    def parts(self) -> dict[str, Measure]:
        """Every measure that a gain is made of: one for each level, and that of captions."""
        return {**self.accuracy, **({CAPTIONS: self.inventions} if self.inventions is not None else {})}

    def score(self, answers: Sequence[AnsweredItem]) -> Quality:
        """Return the scores of some answers."""
        parts = {name: measure.value(answers) for name, measure in self.parts.items()}
        return Quality(parts, None if self.recall is None else self.recall.value(answers))

    def compare(self, plain: Sequence[AnsweredItem], answers: Sequence[AnsweredItem]) -> Gain:
        """Compare answers with plain generate's to the same items."""
        differences: dict[str, Interval] = {}
        for name, measure in self.parts.items():
            test = compare_measure(measure, plain, answers, resamples=RESAMPLES)
            if test is None:
                continue
            sign = -1.0 if name == CAPTIONS else 1.0
            ends = sorted((sign * test.difference.low, sign * test.difference.high))
            differences[name] = Interval(sign * test.difference.value, *ends)
        recall = None if self.recall is None else self.recall.value(answers) - self.recall.value(plain)
        return Gain(differences, recall)


@dataclass(frozen=True)
class Quality:
    """Scores of answers.

    Args:
        parts: By level, and of captions.
        recall: Of captions; None where there are none.
    """

    parts: Mapping[str, float]
    recall: float | None = None

    @property
    def accuracy(self) -> float:
        """The mean over the levels; nan where nothing is asked."""
        values = [value for name, value in self.parts.items() if name != CAPTIONS]
        return float(np.mean(values)) if values else math.nan

    @property
    def inventions(self) -> float | None:
        """The share of named objects that are absent; None without captions."""
        return self.parts.get(CAPTIONS)


@dataclass(frozen=True)
class Gain:
    """Answers minus plain generate's, each part positive where it is better.

    Args:
        parts: Differences with their intervals.
        recall: The difference of recall; None without captions.
    """

    parts: Mapping[str, Interval]
    recall: float | None = None

    @property
    def value(self) -> float:
        """The mean over the parts, each of which counts the same."""
        return float(np.mean([part.value for part in self.parts.values()])) if self.parts else 0.0

    @property
    def error(self) -> float:
        """About the standard error of the mean, the parts taken as independent."""
        errors = [_find_error(part) for part in self.parts.values()]
        return math.sqrt(sum(error**2 for error in errors)) / max(len(errors), 1)

    @property
    def cautious(self) -> float:
        """The mean less its standard error: what a choice among many goes by."""
        return self.value - self.error

    @property
    def loses_recall(self) -> bool:
        """Whether captions name clearly less of what is there."""
        return self.recall is not None and self.recall < -RECALL_LOSS


def _find_error(part: Interval) -> float:
    """Return about the standard error of a difference; of one without bounds, about too few pictures, its own size: it is not sure."""
    width = part.high - part.low
    return abs(part.value) if math.isnan(width) else width / _WIDTH


def check_levels(levels: Iterable[str] | None, available: Sequence[Level], suite: str) -> tuple[Level, ...]:
    """Return levels by name, all of a suite where none is named.

    Raises:
        InputError: A suite does not test one of them; names the nearest.
    """
    by_name: dict[str, Level] = {level: level for level in available}
    names = list(dict.fromkeys(levels or by_name))
    for name in names:
        if name not in by_name:
            raise InputError(f"{suite} tests no level {name!r}.{nearest(name, by_name)}")
    return tuple(by_name[name] for name in names)


def find_objectives(
    measures: Sequence[Measure], levels: Sequence[Level], answers: Sequence[AnsweredItem]
) -> Objectives:
    """Return what decides at some levels: habit-balanced accuracy where a suite has it, else its first measure of the level.

    Args:
        measures: The suite's, its headline first.
        levels: The levels.
        answers: Plain generate's, so that measures which count nothing are left out.

    Raises:
        InputError: Nothing is measured.
    """
    captions = find_caption_measures(measures)
    question_measures = [measure for measure in measures if captions is None or measure not in captions]
    accuracy: dict[str, Measure] = {
        level: measure for level in levels if (measure := _find_accuracy(question_measures, level, answers)) is not None
    }
    if not accuracy and not captions:
        headline = next((m for m in question_measures if m.higher_is_better and len(m.rows(answers)[0])), None)
        accuracy = {} if headline is None else {headline.level: headline}
    has_captions = captions is not None and all(len(measure.rows(answers)[0]) for measure in captions)
    objectives = Objectives(accuracy, *(captions if captions is not None and has_captions else (None, None)))
    if not objectives.parts:
        raise InputError(f"The suite measures nothing at {', '.join(levels)} that could be made better.")
    return objectives


def _find_accuracy(measures: Sequence[Measure], level: str, answers: Sequence[AnsweredItem]) -> Measure | None:
    """Return the measure of a level: habit-balanced accuracy, else the first one of which more is better."""
    of_level = [measure for measure in measures if measure.level == level and measure.higher_is_better]
    ordered = sorted(of_level, key=lambda measure: not measure.name.startswith(HABIT_BALANCED))
    return next(
        (measure for measure in ordered if len(measure.rows(answers)[0]) and _is_defined(measure, answers)), None
    )


def _is_defined(measure: Measure, answers: Sequence[AnsweredItem]) -> bool:
    return not math.isnan(measure.value(answers))
