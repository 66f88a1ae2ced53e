"""The geometry of the report's charts: quality against cost, and a bar per system and level. Templates draw them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.bench.items import LEVELS
from lvlm_guard.bench.reporting import labels
from lvlm_guard.bench.reporting.axes import BOTTOM as BOTTOM  # noqa: PLC0414 - part of this module's names
from lvlm_guard.bench.reporting.axes import LEFT as LEFT  # noqa: PLC0414 - as above
from lvlm_guard.bench.reporting.axes import RIGHT as RIGHT  # noqa: PLC0414 - as above
from lvlm_guard.bench.reporting.axes import TOP as TOP  # noqa: PLC0414 - as above
from lvlm_guard.bench.reporting.axes import Scale, Tick, find_bounds, find_step, format_tick, lay_out_quality
from lvlm_guard.bench.reporting.labels import Box, Label, Place
from lvlm_guard.bench.reporting.results import Outcome, Results, Score
from lvlm_guard.bench.running.systems import GREEDY
from lvlm_guard.bench.scoring.intervals import format_interval

WIDTH, HEIGHT = 920.0, 480.0
NAMED = 14
"""Up to so many systems are named in the scatter chart; more are numbered."""

LETTER, LINE, MARK = 6.7, 13.0, 5.5
"""Width of a letter, height of a line, and half the size of a mark."""

NAMES, GAP, ROW, HEAD, FIGURE = 168.0, 18.0, 19.0, 46.0, 40.0
"""Of the bars: width of the names, gap between panels, height of a row and of the titles, width of a figure."""

LONGEST = 22
"""Letters of a name beside the bars; a longer one loses its middle, and the tooltip has it whole."""

ROUND = ((1, 2, 5), (1.5, 3, 4, 7), (1.2, 1.4, 1.6, 1.8, 2.5, 6, 8, 9))
"""Figures at which a logarithmic axis may have ticks, round ones first."""

LEAST_TICKS = 4
TICK_ROOM = 44.0


@dataclass(frozen=True)
class Mark:
    """One system in the scatter chart; `bounds` is None where its interval is not known."""

    number: int
    name: str
    role: str
    x: float
    y: float
    bounds: tuple[float, float] | None
    label: str
    place: Place
    tooltip: str


@dataclass(frozen=True)
class Scatter:
    """Quality against cost.

    Args:
        marks: Everybody with a figure and a cost, in the order of the run.
        numbered: Whether labels are numbers.
        across: Ticks of the cost.
        up: Ticks of the quality.
        cost: What the cost is.
        quality: What the quality is.
        front: Corners of the line below which something is both cheaper and at least as good.
        greedy: Height of greedy's mark; None where it has none.
        left_out: Systems that have no figure or no cost.
    """

    marks: tuple[Mark, ...]
    numbered: bool
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    cost: str
    quality: str
    front: tuple[tuple[float, float], ...]
    greedy: float | None
    left_out: tuple[str, ...]

    @property
    def path(self) -> str:
        """The line's points as SVG writes them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.front)


@dataclass(frozen=True)
class Bar:
    """One score; `whisker` is None where its interval is not known."""

    name: str
    y: float
    role: str
    width: float
    whisker: tuple[float, float] | None
    figure: str
    tooltip: str


@dataclass(frozen=True)
class Panel:
    """The bars of one level."""

    level: str
    title: str
    left: float
    right: float
    bars: tuple[Bar, ...]
    across: tuple[Tick, ...]
    greedy: float | None


@dataclass(frozen=True)
class Line:
    """A row of the bars."""

    y: float
    name: str
    label: str
    role: str


@dataclass(frozen=True)
class Levels:
    """A panel per level, a row per system."""

    panels: tuple[Panel, ...]
    lines: tuple[Line, ...]
    height: float


def role_of(outcome: Outcome) -> str:
    """Return the role that a system is drawn with: "greedy", "control" or "stack"."""
    return GREEDY if outcome.system == GREEDY else outcome.role


def scatter(results: Results, suite: str, measure: str) -> Scatter | None:
    """Lay out quality against cost: time over greedy's where it was measured, else forwards.

    None where no system has both.
    """
    outcomes = {outcome.system: outcome for outcome in results.outcomes if outcome.suite == suite}
    costs, cost = _costs(outcomes)
    scores = {name: score for name, score in results.of(suite, measure).items() if not math.isnan(score.found.value)}
    names = [name for name in outcomes if name in scores and name in costs]
    if not names:
        return None
    first = scores[names[0]]
    up, heights = lay_out_quality([scores[name].found for name in names], turned=first.higher_is_better is False)
    across, widths = _across([costs[name] for name in names])
    marks = _marks([(outcomes[name], scores[name], costs[name]) for name in names], widths, heights)
    return Scatter(
        marks=marks,
        numbered=len(names) > NAMED,
        across=across,
        up=up,
        cost=cost,
        quality=first.title,
        front=_front([(mark.x, mark.y) for mark in marks]),
        greedy=next((mark.y for mark in marks if mark.role == GREEDY), None),
        left_out=tuple(name for name in outcomes if name not in names),
    )


def _costs(outcomes: Mapping[str, Outcome]) -> tuple[dict[str, float], str]:
    """Return what each system costs, and the unit."""
    spent = {name: outcome.spent for name, outcome in outcomes.items() if outcome.spent is not None and outcome.whole}
    ratios = {name: cost.ratio for name, cost in spent.items() if cost.ratio is not None and cost.ratio > 0}
    if len(ratios) == len(spent):
        return ratios, "time over greedy's"
    forwards = {name: cost.decode for name, cost in spent.items() if cost.decode > 0}
    return forwards, "forwards of the decoder per token"


def _marks(drawn_systems: Sequence[tuple[Outcome, Score, float]], widths: Scale, heights: Scale) -> tuple[Mark, ...]:
    numbered = len(drawn_systems) > NAMED
    texts = [str(at) if numbered else outcome.system for at, (outcome, _, _) in enumerate(drawn_systems, 1)]
    points = [(widths.at(math.log(cost)), heights.at(score.found.value)) for _, score, cost in drawn_systems]
    bounds = [find_bounds(score.found, heights) for _, score, _ in drawn_systems]
    label_sizes = [Label(x, y, LETTER * len(text) + 4, LINE) for text, (x, y) in zip(texts, points, strict=True)]
    boxes = [Box.around(x, y, 2 * MARK + 2, 2 * MARK + 2) for x, y in points]
    whiskers = [
        Box(x - 1, min(bound), x + 1, max(bound))
        for bound, (x, _) in zip(bounds, points, strict=True)
        if bound is not None
    ]
    boxes += [
        Box(LEFT, y - 1, RIGHT, y + 1)
        for (outcome, _, _), (_, y) in zip(drawn_systems, points, strict=True)
        if outcome.system == GREEDY
    ]
    boxes += [
        Box(before[0] - 1, after[1] - 1, after[0] + 1, before[1] + 1)
        for before, after in itertools.pairwise(_front(points))
    ]
    places = labels.place(label_sizes, Box(LEFT + 2, TOP, RIGHT, BOTTOM - 2), boxes, whiskers)
    return tuple(
        Mark(
            at,
            outcome.system,
            role_of(outcome),
            x,
            y,
            bound,
            text,
            put,
            f"{outcome.system}: {format_interval(score.found, score.clusters)}, {cost:.2f}",
        )
        for at, ((outcome, score, cost), (x, y), bound, text, put) in enumerate(
            zip(drawn_systems, points, bounds, texts, places, strict=True), 1
        )
    )


def _across(costs: Sequence[float]) -> tuple[tuple[Tick, ...], Scale]:
    """Lay out the axis of cost, logarithmic."""
    low, high = min(*costs, 1.0), max(*costs, 1.0)
    room = max(0.05 * math.log(high / low), 0.06)
    scale = Scale(math.log(low) - room, math.log(high) + room, LEFT, RIGHT)
    values = [1.0]
    for digits in ROUND:
        if len(values) < LEAST_TICKS:
            powers = range(math.floor(math.log10(low)) - 1, math.floor(math.log10(high)) + 2)
            more = {round(digit * 10.0**power, 9) for power in powers for digit in digits}
            values = _apart(values, [tick for tick in more if scale.low <= math.log(tick) <= scale.high], scale)
    return tuple(Tick(scale.at(math.log(value)), f"{value:g}\u00d7") for value in sorted(values)), scale


def _apart(values: Sequence[float], more: Sequence[float], scale: Scale) -> list[float]:
    """Add those of `more` whose figures do not run into the others, near 1 first."""
    chosen = list(values)
    for value in sorted(more, key=lambda candidate: abs(math.log(candidate))):
        places = [scale.at(math.log(neighbour)) for neighbour in chosen]
        if all(abs(scale.at(math.log(value)) - place) >= TICK_ROOM for place in places):
            chosen.append(value)
    return chosen


def _front(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return the steps through the points that nothing cheaper equals; y is downwards."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    corners = [point for (x, y), (after, _) in itertools.pairwise(best) for point in ((x, y), (after, y))]
    return (*corners, best[-1], (RIGHT, best[-1][1])) if best else ()


def number(value: float | None, digits: int = 3) -> str:
    """Write a figure, or a dash where there is none."""
    return "\u2013" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def short(name: str) -> str:
    """Shorten a name to fit beside the bars."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}\u2026{name[-(LONGEST // 2 - 1) :]}"


def levels(results: Results, suite: str, order: Sequence[str]) -> Levels | None:
    """Lay out bars of the first measure of each level; None where there is no score.

    Args:
        results: The figures.
        suite: The suite's name in the run.
        order: Systems from top to bottom.
    """
    firsts = _firsts(results, suite)
    roles = {outcome.system: role_of(outcome) for outcome in results.outcomes if outcome.suite == suite}
    scored = {score.system for score in results.scores if score.suite == suite}
    names = [name for name in order if name in scored]
    if not firsts or not names:
        return None
    lines = tuple(Line(HEAD + ROW * (at + 0.5), name, short(name), roles[name]) for at, name in enumerate(names))
    width = (WIDTH - NAMES) / len(firsts)
    panels = tuple(
        _panel(results.of(suite, measure), lines, NAMES + width * at, NAMES + width * (at + 1) - GAP - FIGURE)
        for at, measure in enumerate(firsts.values())
    )
    return Levels(panels, lines, HEAD + ROW * len(lines) + 28)


def _firsts(results: Results, suite: str) -> dict[str, str]:
    """Return the first measure of each level that is better one way.

    Those over all levels only where no level has one.
    """
    by_level = {
        score.level: score.measure
        for score in reversed(results.scores)
        if score.suite == suite and score.higher_is_better is not None
    }
    single = {str(level): by_level[level] for level in LEVELS if level in by_level}
    return single or by_level


def _panel(scores: Mapping[str, Score], lines: Sequence[Line], left: float, right: float) -> Panel:
    ends = [max(score.found.value, score.found.high) for score in scores.values() if not math.isnan(score.found.high)]
    ends += [score.found.value for score in scores.values() if not math.isnan(score.found.value)]
    top = max(ends, default=1.0)
    scale = Scale(0.0, 1.0 if top <= 1 else 1.05 * top, left, right)
    step = find_step(scale.high, 4)
    plain = scores.get(GREEDY)
    first = next(iter(scores.values()))
    aim = "" if first.higher_is_better else ", lower is better"
    has_plain = plain is not None and not math.isnan(plain.found.value)
    return Panel(
        level=first.level,
        title=f"{first.title}{aim}",
        left=left,
        right=right,
        bars=tuple(_bar(scores[line.name], line, scale) for line in lines if line.name in scores),
        across=tuple(
            Tick(scale.at(at * step), format_tick(at * step, step))
            for at in range(math.floor(scale.high / step + 1e-9) + 1)
        ),
        greedy=scale.at(plain.found.value) if plain is not None and has_plain else None,
    )


def _bar(score: Score, line: Line, scale: Scale) -> Bar:
    is_defined = not math.isnan(score.found.value)
    return Bar(
        name=line.name,
        y=line.y,
        role=line.role,
        width=round(max(scale.at(score.found.value) - scale.start, 0.0), 1) if is_defined else 0.0,
        whisker=find_bounds(score.found, scale) if is_defined else None,
        figure=number(score.found.value),
        tooltip=f"{line.name}: {format_interval(score.found, score.clusters)}",
    )
