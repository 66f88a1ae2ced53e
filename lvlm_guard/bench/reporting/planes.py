"""Captions on one plane: inventions against recall, the systems beside the frontier of greedy's captions cut short."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.bench.reporting import charts, labels
from lvlm_guard.bench.reporting.axes import BOTTOM, LEFT, RIGHT, TOP, Scale, Tick, find_bounds, lay_out_ticks
from lvlm_guard.bench.reporting.charts import number, role_of
from lvlm_guard.bench.reporting.differences import SURE, corrected
from lvlm_guard.bench.reporting.labels import Box, Label, Place
from lvlm_guard.bench.reporting.results import Results, Score
from lvlm_guard.bench.reporting.tables import Cell, Column, Table, TableRow
from lvlm_guard.bench.running.systems import SWAP
from lvlm_guard.bench.scoring.frontier import FEWER, RANDOM, SHORTER, CaptionPlane, CurvePoint, PlanePoint
from lvlm_guard.bench.scoring.intervals import TOO_FEW, format_interval
from lvlm_guard.bench.scoring.significance import Significance

LEAST_SPAN = 0.1
"""The axes show at least so much, so that systems that are all alike do not look far apart."""

STYLES: Mapping[str, str] = {SHORTER: "shorter", FEWER: "fewer", RANDOM: "random"}
"""How the curves of the trivial controls are dashed."""

COLUMNS = (
    Column(
        "length-adjusted gain [95 %]", "inventions of greedy's captions cut to the same recall, minus the system's own"
    ),
    Column("p, Holm", "corrected for the other stacks, or for the other controls"),
    Column("beside the frontier", "where the captions are better or worse than cut ones beyond chance", text=True),
)


@dataclass(frozen=True)
class PlaneMark:
    """One system: its place, and the ends of both of its intervals, None where they are not known."""

    number: int
    name: str
    role: str
    x: float
    y: float
    across: tuple[float, float] | None
    up: tuple[float, float] | None
    label: str
    place: Place
    tooltip: str


@dataclass(frozen=True)
class PlaneCurve:
    """A trivial control: its name, how it is dashed, and its points as SVG writes them."""

    name: str
    style: str
    path: str


@dataclass(frozen=True)
class PlaneChart:
    """Inventions, fewer further up, against recall.

    Args:
        marks: Systems, in the order of the run.
        numbered: Whether labels are numbers.
        curves: The trivial controls.
        across: Ticks of recall.
        up: Ticks of inventions.
        titles: What the two are: inventions, recall.
        left_out: Controls with other pictures or evidence that are too far off to be drawn.
    """

    marks: tuple[PlaneMark, ...]
    numbered: bool
    curves: tuple[PlaneCurve, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    titles: tuple[str, str]
    left_out: tuple[str, ...]


def draw_plane(results: Results, suite: str) -> PlaneChart | None:
    """Lay out the plane of a suite; None where it has no captions, or no system has both figures."""
    plane = results.planes.get(suite)
    points = [] if plane is None else [point for point in plane.points if not math.isnan(point.invention)]
    if plane is None or not points:
        return None
    near = [point for point in points if not point.system.startswith(SWAP)] or points
    low, high = _find_span([point.coverage for point in near])
    widths = Scale(low, high, LEFT, RIGHT)
    curves = {name: _clip(curve, low, high) for name, curve in plane.curves.items()}
    cut_inventions = [point.invention for curve in curves.values() for point in curve]
    least, most = _find_span([point.invention for point in near] + cut_inventions)
    heights = Scale(most, least, BOTTOM, TOP)
    drawn = [point for point in points if low <= point.coverage <= high and least <= point.invention <= most]
    return PlaneChart(
        marks=_mark(results, suite, plane, drawn, widths, heights),
        numbered=len(drawn) > charts.NAMED,
        curves=tuple(PlaneCurve(name, STYLES[name], _trace(curve, widths, heights)) for name, curve in curves.items()),
        across=lay_out_ticks(low, high, widths),
        up=lay_out_ticks(least, most, heights),
        titles=plane.titles,
        left_out=tuple(point.system for point in points if point not in drawn),
    )


def _find_span(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis of shares with some room, between 0 and 1."""
    room = max(0.08 * (max(values) - min(values)), (LEAST_SPAN - (max(values) - min(values))) / 2)
    return max(min(values) - room, 0.0), min(max(values) + room, 1.0)


def _clip(curve: Sequence[CurvePoint], low: float, high: float) -> list[CurvePoint]:
    """Return the part of a curve between two values of recall, its ends on the straight lines between points."""
    inside = [point for point in curve[:1] if low <= point.coverage <= high]
    for before, after in itertools.pairwise(curve):
        run = after.coverage - before.coverage
        edges = [
            edge
            for edge in (high, low)
            if min(before.coverage, after.coverage) < edge < max(before.coverage, after.coverage)
        ]
        shares = [(edge - before.coverage) / run for edge in edges]
        inside += [
            CurvePoint(
                before.share_left + share * (after.share_left - before.share_left),
                edge,
                before.invention + share * (after.invention - before.invention),
            )
            for edge, share in zip(edges, shares, strict=True)
        ]
        inside += [after] if low <= after.coverage <= high else []
    return inside


def _trace(curve: Sequence[CurvePoint], widths: Scale, heights: Scale) -> str:
    return " ".join(f"{widths.at(point.coverage):.1f},{heights.at(point.invention):.1f}" for point in curve)


def _mark(
    results: Results, suite: str, plane: CaptionPlane, points: Sequence[PlanePoint], widths: Scale, heights: Scale
) -> tuple[PlaneMark, ...]:
    roles = {outcome.system: role_of(outcome) for outcome in results.outcomes if outcome.suite == suite}
    recalls, inventions = (results.of(suite, measure) for measure in (plane.coverage, plane.invention))
    numbered = len(points) > charts.NAMED
    texts = [str(at) if numbered else point.system for at, point in enumerate(points, 1)]
    places = _place_labels(texts, [(widths.at(point.coverage), heights.at(point.invention)) for point in points])
    return tuple(
        PlaneMark(
            at,
            point.system,
            roles[point.system],
            widths.at(point.coverage),
            heights.at(point.invention),
            _bound(recalls.get(point.system), widths),
            _bound(inventions.get(point.system), heights),
            text,
            place,
            f"{point.system}: {plane.titles[1]} {number(point.coverage)}, {plane.titles[0]} {number(point.invention)}",
        )
        for at, (point, text, place) in enumerate(zip(points, texts, places, strict=True), 1)
    )


def _bound(score: Score | None, scale: Scale) -> tuple[float, float] | None:
    """Return where an interval is drawn, within the frame."""
    ends_drawn = None if score is None else find_bounds(score.found, scale)
    if ends_drawn is None:
        return None
    ends = sorted((scale.start, scale.end))
    low, high = (min(max(end, ends[0]), ends[1]) for end in ends_drawn)
    return low, high


def _place_labels(texts: Sequence[str], points: Sequence[tuple[float, float]]) -> list[Place]:
    size = 2 * charts.MARK + 2
    return labels.place(
        [Label(x, y, charts.LETTER * len(text) + 4, charts.LINE) for text, (x, y) in zip(texts, points, strict=True)],
        Box(LEFT + 2, TOP, RIGHT, BOTTOM - 2),
        [Box.around(x, y, size, size) for x, y in points],
    )


def describe_gain(gain: Significance | None) -> str:
    """Say in a few words where captions lie: above the frontier, on it or below it."""
    if gain is None:
        return "greedy's captions, cut nowhere"
    if math.isnan(gain.p):
        return TOO_FEW if gain.test == TOO_FEW else "unknown"
    if corrected(gain) >= SURE:
        return "on the frontier"
    return "above the frontier" if gain.difference.value > 0 else "below the frontier"


def tabulate_plane(results: Results, suite: str, order: Sequence[str]) -> Table | None:
    """Build the table beside the plane; None where the suite has no captions."""
    plane = results.planes.get(suite)
    if plane is None:
        return None
    outcomes = {outcome.system: outcome for outcome in results.outcomes if outcome.suite == suite}
    scores = [results.of(suite, measure) for measure in (plane.coverage, plane.invention)]
    rows = tuple(
        TableRow(
            name, role_of(outcomes[name]), (*(_write(by_system.get(name)) for by_system in scores), *_write_gain(point))
        )
        for name in order
        if (point := plane.of(name)) is not None
    )
    titles = tuple(Column(title) for title in reversed(plane.titles))
    return Table("", "captions beside the frontier", "", "", (*titles, *COLUMNS), rows)


def _write(score: Score | None) -> Cell:
    if score is None or math.isnan(score.found.value):
        return Cell(number(None), "")
    return Cell(format_interval(score.found, score.clusters), repr(score.found.value))


def _write_gain(point: PlanePoint) -> tuple[Cell, ...]:
    words = describe_gain(point.gain)
    if (gain := point.gain) is None or math.isnan(gain.difference.value):
        return Cell(number(None), ""), Cell(number(None), ""), Cell(words, words)
    mark = {"above the frontier": "better", "below the frontier": "worse"}.get(words, "")
    p = corrected(gain)
    chance = "<0.001" if p < 0.001 else number(p)  # noqa: PLR2004 - as many digits as are visible_points
    figures = format_interval(gain.difference, gain.clusters, signed=True)
    key = "" if math.isnan(p) else repr(p)
    return Cell(figures, repr(gain.difference.value), mark), Cell(chance, key, mark), Cell(words, words)
