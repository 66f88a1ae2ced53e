"""What captions gain by saying less: inventions against recall, and the frontier of greedy's own captions cut short.

A caption that is cut names fewer absent objects and fewer present ones. So fewer inventions count only beyond what cutting
greedy's captions to the same recall would give. The cuts are made of greedy's texts; nothing is generated for them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.scoring.intervals import Totals, by_cluster, share
from lvlm_guard.bench.scoring.measures import Counts, Measure
from lvlm_guard.bench.scoring.significance import RESAMPLES, Significance, correct_p_values, significance

COVERAGE = ("recall", "cover")
"""How measures are called that fall when a caption simply names less."""

INVENTION = "chair"
"""How measures of named objects that are absent begin."""

CUTS = 24
"""Places at which a caption is cut, and shares of its objects that are kept."""

SHORTER, FEWER, RANDOM = "mention shorter", "mention fewer, the last ones left out", "mention fewer, some left out"
"""The trivial controls: cut after a share of the words; leave the last named objects out; leave some out by chance."""

_WORD = re.compile(r"\S+")
_COUNTS = 4
"""Of a caption: absent objects named, objects named, present objects named, present objects."""


@dataclass(frozen=True)
class CurvePoint:
    """One setting of a trivial control: the share of words or objects that is left, and what it comes to."""

    share_left: float
    coverage: float
    invention: float


@dataclass(frozen=True)
class PlanePoint:
    """One system beside the frontier.

    Args:
        system: Who wrote the captions.
        coverage: Share of the present objects that are named.
        invention: Share of the named objects that are absent.
        gain: Inventions of the frontier at the system's recall minus its own, positive where the captions are better than cut
            ones; None for greedy, which is the frontier's end. Holm's correction is over the stacks, and over the controls.
    """

    system: str
    coverage: float
    invention: float
    gain: Significance | None = None


@dataclass(frozen=True)
class CaptionPlane:
    """Inventions against recall, for the captions of a suite.

    Args:
        invention: Name of the measure of absent objects that are named.
        coverage: Name of the measure of present objects that are named.
        titles: The titles of the two.
        curves: The points of every trivial control by its name, from whole captions to the shortest.
        points: One per system that wrote all captions.
    """

    invention: str
    coverage: str
    titles: tuple[str, str]
    curves: Mapping[str, Sequence[CurvePoint]]
    points: Sequence[PlanePoint]

    def of(self, system: str) -> PlanePoint | None:
        """Return the point of one system; None where it has none."""
        return next((point for point in self.points if point.system == system), None)


def find_caption_measures(measures: Sequence[Measure]) -> tuple[Measure, Measure] | None:
    """Return the first measure of inventions and the first of recall beside it; None where a suite has not both."""
    for measure in measures:
        if measure.name.startswith(INVENTION) and measure.higher_is_better is False and _is_plain(measure):
            for neighbour in measures:
                if neighbour.name.startswith(COVERAGE) and neighbour.level == measure.level and _is_plain(neighbour):
                    return measure, neighbour
    return None


def _is_plain(measure: Measure) -> bool:
    return measure.statistic is share and not measure.binary


def build_plane(
    measures: tuple[Measure, Measure],
    answers_by_system: Mapping[str, Sequence[AnsweredItem]],
    roles: Mapping[str, str],
    plain: str,
    resamples: int = RESAMPLES,
) -> CaptionPlane | None:
    """Place every system beside the frontier of the trivial controls; None where plain generate wrote no captions.

    Args:
        measures: Of inventions and of recall.
        answers_by_system: Answers of the systems that answered everything.
        roles: Stack or control, by system.
        plain: The system whose captions are cut.
        resamples: Bootstrap resamples of a gain, whole pictures.
    """
    captions = _select_captions(measures, answers_by_system.get(plain, ()))
    if not captions:
        return None
    ids = [answer.item.id for answer in captions]
    clusters = [answer.item.cluster for answer in captions]
    curves = _cut(measures, captions)
    cuts = np.concatenate([curve.transpose(1, 0, 2).reshape(len(ids), -1) for curve in curves.values()], axis=1)
    counts = {name: _count_all(measures, ids, answers) for name, answers in answers_by_system.items()}
    gains = {
        name: significance(
            np.concatenate([np.zeros_like(counted), cuts], 1),
            np.concatenate([counted, cuts], 1),
            clusters,
            LengthAdjustedGain(),
            resamples=resamples,
        )
        for name, counted in counts.items()
        if name != plain
    }
    tested: dict[str, Significance] = {}
    for role in dict.fromkeys(roles.values()):
        tested |= correct_p_values({name: gain for name, gain in gains.items() if roles[name] == role})
    totals = {name: by_cluster(clusters, counted).sum(0) for name, counted in counts.items()}
    points = [PlanePoint(name, *_point(totals[name]), tested.get(name)) for name in counts]
    titles = (measures[0].title, measures[1].title)
    return CaptionPlane(measures[0].name, measures[1].name, titles, _read_curves(curves), points)


def _select_captions(measures: tuple[Measure, Measure], answers: Sequence[AnsweredItem]) -> list[AnsweredItem]:
    return [answer for answer in answers if all(measure.count([answer]) is not None for measure in measures)]


def _count_all(
    measures: tuple[Measure, Measure], ids: Sequence[str], answers: Sequence[AnsweredItem]
) -> NDArray[np.float64]:
    by_id = {answer.item.id: answer for answer in answers}
    return np.array([_count(measures, by_id[name]) for name in ids], dtype=np.float64)


def _count(measures: tuple[Measure, Measure], answer: AnsweredItem) -> Counts:
    counted = [measure.count([answer]) or (0.0, 0.0) for measure in measures]
    return (*counted[0][:2], *counted[1][:2])


def _cut(measures: tuple[Measure, Measure], captions: Sequence[AnsweredItem]) -> dict[str, NDArray[np.float64]]:
    """Return the counts `[cuts + 1, captions, 4]` of captions cut short, from whole ones to nothing."""
    shorter = np.array([_cut_caption(measures, answer) for answer in captions], dtype=np.float64).transpose(1, 0, 2)
    named = shorter[..., 1]
    fewer = np.empty_like(shorter)
    for at in range(CUTS + 1):
        limits = np.rint(named[0] * (CUTS - at) / CUTS)
        longest = (named <= limits).argmax(0)
        fewer[at] = np.take_along_axis(shorter, longest[None, :, None], 0)[0]
    return {SHORTER: shorter, FEWER: fewer}


def _cut_caption(measures: tuple[Measure, Measure], answer: AnsweredItem) -> list[Counts]:
    """Count a caption after ever fewer of its words."""
    ends = [match.end() for match in _WORD.finditer(answer.text)]
    lengths = [math.ceil(len(ends) * (CUTS - at) / CUTS) for at in range(CUTS + 1)]
    counts = {
        words: _count(measures, dataclasses.replace(answer, text=answer.text[: ends[words - 1]] if words else ""))
        for words in set(lengths)
    }
    return [counts[words] for words in lengths]


def _point(totals: Totals) -> tuple[float, float]:
    """Return recall and inventions from summed counts."""
    return float(share(totals[2:4])), float(share(totals[0:2]))


def _read_curves(curves: Mapping[str, NDArray[np.float64]]) -> dict[str, tuple[CurvePoint, ...]]:
    """Return the points of each curve; leaving objects out by chance keeps the share of inventions, whatever is left."""
    read = {}
    for name, counts in curves.items():
        points = [CurvePoint((CUTS - at) / CUTS, *_point(counts[at].sum(0))) for at in range(CUTS + 1)]
        read[name] = tuple(point for point in points if not math.isnan(point.invention))
    uncut = read[SHORTER][:1]
    read[RANDOM] = tuple(
        CurvePoint(part, part * point.coverage, point.invention) for point in uncut for part in (1.0, 0.5, 0.0)
    )
    return read


@dataclass(frozen=True)
class LengthAdjustedGain:
    """Inventions of the frontier at a system's recall minus the system's own.

    Of all cuts of greedy's captions with at least that recall, the frontier has the fewest inventions; between two cuts it
    is a straight line. Beyond greedy's own recall it is greedy's. No captions at all gain 0, so that a gain can be compared with none.
    """

    def __call__(self, totals: Totals) -> Totals:
        """Return gains of shape (...) from totals of shape (..., counts): the system's four, then those of every cut."""
        rows = totals.reshape(-1, totals.shape[-1])
        system_counts, cuts = rows[:, :_COUNTS], rows[:, _COUNTS:].reshape(len(rows), -1, CUTS + 1, _COUNTS)
        inventions, coverage = share(system_counts[:, 0:2]), share(system_counts[:, 2:4])
        frontier = np.array(
            [
                math.nan if math.isnan(recall) else min(_interpolate(recall, curve) for curve in row)
                for recall, row in zip(coverage, cuts, strict=True)
            ]
        )
        gains = np.where(system_counts[:, 3] == 0, 0.0, frontier - inventions)
        return np.asarray(gains.reshape(totals.shape[:-1]))


def _interpolate(recall: float, curve: Totals) -> float:
    """Return the inventions of a curve `[cuts, 4]`, whole captions first, at a recall."""
    defined = curve[curve[:, 1] > 0]
    if not len(defined):
        return math.nan
    inventions = np.minimum.accumulate(share(defined[:, 0:2]))[::-1]
    coverage = np.minimum.accumulate(share(defined[:, 2:4]))[::-1]
    steps, first = np.unique(coverage, return_index=True)  # of cuts with the same recall, the one that leaves out most
    return float(np.interp(recall, steps, inventions[first]))
