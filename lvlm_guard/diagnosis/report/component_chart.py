"""A chart of components in the order in which the picture comes through them, each with a figure, and a threshold."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.diagnosis.model.components import INSIDE, Component

LEFT, RIGHT, TOP, PLOT, BOTTOM = 46.0, 14.0, 30.0, 220.0, 44.0
"""Margins of the chart and the height of its plot, in pixels."""
PAD = 12.0
"""Room for a mark at either end of the plot."""
SINGLE, TOWER, DECODER = 58.0, 260.0, 560.0
"""Width of a part without layers, and greatest widths of all layers of the tower and of the decoder."""
WIDEST, NARROWEST = {"tower": 36.0, "decoder": 70.0}, {"tower": 8.0, "decoder": 14.0}
"""Of one layer."""
LABEL = 20.0
"""Room that the number of a layer needs."""
TICK_ROOM = 15.0
"""Room that a figure at the axis needs."""
STEPS = tuple(factor * 10.0**power for power in range(-3, 6) for factor in (1, 3))


@dataclass(frozen=True)
class ComponentMark:
    """A component in the chart.

    Args:
        x: Its middle.
        y: Its middle.
        shape: Name of its shape: the component's, or `failed`.
        label: What it is, in words.
        value: Its figure; None where a check failed without one.
        is_beyond: Whether it is beyond the threshold, or failed a check.
        is_named: Whether the verdict names it.
    """

    x: float
    y: float
    shape: str
    label: str
    value: float | None
    is_beyond: bool
    is_named: bool


@dataclass(frozen=True)
class Slot:
    """A place along the way: a part, or a layer of one.

    Args:
        part: `pixels`, `patches`, `tower`, `projector`, `decoder`, `output` or `decoding`.
        layer: The layer; None where the part has none.
        x: Left edge.
        width: Width.
        label: What stands under it; empty where there is no room.
    """

    part: str
    layer: int | None
    x: float
    width: float
    label: str


@dataclass(frozen=True)
class ComponentChart:
    """The chart.

    Args:
        width: Of the drawing.
        height: Of the drawing.
        slots: Places from left to right.
        marks: Components.
        ticks: Height and figure of each tick.
        threshold: Height and figure of the threshold.
        bottom: Height of the lower end of the plot.
        groups: Left edge, right edge and name of what has layers.
    """

    width: float
    height: float
    slots: tuple[Slot, ...]
    marks: tuple[ComponentMark, ...]
    ticks: tuple[tuple[float, float], ...]
    threshold: tuple[float, float]
    bottom: float
    groups: tuple[tuple[float, float, str], ...]

    @property
    def shapes(self) -> list[str]:
        """The shapes that occur, in causal order, for a key."""
        return list(dict.fromkeys(mark.shape for mark in self.marks))


@dataclass(frozen=True)
class _Scale:
    """Heights of figures: even round 0, logarithmic far from it, since scores go from below 0 to hundreds."""

    low: float
    high: float
    unit: float

    def place(self, value: float) -> float:
        low, high = self._stretch(self.low), self._stretch(self.high)
        return TOP + PAD + (PLOT - 2 * PAD) * (high - self._stretch(value)) / (high - low)

    def _stretch(self, value: float) -> float:
        return math.copysign(math.log1p(abs(value) / self.unit), value)

    def ticks(self) -> Iterator[tuple[float, float]]:
        """Return height and figure of ticks, from 0 outwards, that do not touch."""
        lowest = highest = self.place(0.0)
        yield highest, 0.0
        for step in STEPS:
            above, below = self.place(step), self.place(-step)
            if step <= self.high and highest - above > TICK_ROOM:
                highest = above
                yield above, step
            if -step >= self.low and below - lowest > TICK_ROOM:
                lowest = below
                yield below, -step


def draw_components(
    values: Mapping[Component, float],
    threshold: float,
    unit: float,
    failed: Mapping[Component, float | None] | None = None,
    culprit: Component | None = None,
) -> ComponentChart:
    """Return figures of components as a chart. Of the heads of a layer, the highest is shown, and the one that the verdict names.

    Args:
        values: The figures.
        threshold: From where on a figure is abnormal.
        unit: Figures far beyond it are on a logarithmic scale.
        failed: Components that failed an exact check, and by how much.
        culprit: What the verdict names.
    """
    failures = failed or {}
    labels = _choose(values, culprit)
    slots = _lay_out({*labels, *failures})
    figures = [values[component] for component in labels]
    scale = _Scale(min(0.0, *figures), max(1.2 * threshold, *figures), unit)
    marks = []
    for component, label in labels.items():
        x, value = _find_x(component, slots), values[component]
        is_named = component == culprit
        marks.append(ComponentMark(x, scale.place(value), component.name, label, value, value > threshold, is_named))
    marks += [_mark_failure(component, size, slots, culprit) for component, size in failures.items()]
    return ComponentChart(
        width=slots[-1].x + slots[-1].width + RIGHT,
        height=TOP + PLOT + BOTTOM,
        slots=tuple(slots),
        marks=tuple(marks),
        ticks=tuple(scale.ticks()),
        threshold=(scale.place(threshold), threshold),
        bottom=TOP + PLOT,
        groups=tuple(_group(slots)),
    )


def _mark_failure(
    component: Component, size: float | None, slots: Sequence[Slot], culprit: Component | None
) -> ComponentMark:
    label = f"exact check of {component}"
    return ComponentMark(
        _find_x(component, slots), TOP - 14, "failed", label, size, is_beyond=True, is_named=component == culprit
    )


def _choose(values: Mapping[Component, float], culprit: Component | None) -> dict[Component, str]:
    """Return the components that are shown, with what they are in words, in causal order."""
    highest: dict[int | None, Component] = {}
    counts: dict[int | None, int] = {}
    for component in sorted(values, key=lambda component: component.order):
        if component.head is not None:
            counts[component.layer] = counts.get(component.layer, 0) + 1
            best = highest.setdefault(component.layer, component)
            highest[component.layer] = component if values[component] > values[best] else best
    heads = {
        head: f"{head}, the highest of {counts[layer]}" if counts[layer] > 1 else str(head)
        for layer, head in highest.items()
    }
    parts = {component: str(component) for component in values if component.head is None or component == culprit}
    return dict(sorted({**parts, **heads}.items(), key=lambda pair: pair[0].order))


def _find_part(component: Component) -> str:
    return "decoder" if component.name in INSIDE else component.name


def _lay_out(components: Collection[Component]) -> list[Slot]:
    """Return the places along the way, from left to right; layers without a figure keep theirs."""
    ordered = sorted(components, key=lambda component: component.order)
    parts = list(dict.fromkeys(map(_find_part, ordered)))
    slots: list[Slot] = []
    x = LEFT
    for part in parts:
        layers = [each.layer for each in components if _find_part(each) == part and each.layer is not None]
        for slot in _lay_out_part(part, 1 + max(layers) if layers else 0, x):
            slots.append(slot)
            x = slot.x + slot.width
    return slots


def _lay_out_part(part: str, layers: int, x: float) -> Iterator[Slot]:
    if not layers:
        yield Slot(part, None, x, SINGLE, part)
        return
    room = {"tower": TOWER, "decoder": DECODER}[part] / layers
    width = min(WIDEST[part], max(NARROWEST[part], room))
    every = math.ceil(LABEL / width)
    for layer in range(layers):
        yield Slot(part, layer, x + layer * width, width, "" if layer % every else str(layer))


def _find_x(component: Component, slots: Sequence[Slot]) -> float:
    """Return the middle of a component; those of one layer stand side by side in causal order."""
    place = (_find_part(component), component.layer)
    slot = next(slot for slot in slots if (slot.part, slot.layer) == place)
    share = (INSIDE.index(component.name) + 0.5) / len(INSIDE) if component.name in INSIDE else 0.5
    return slot.x + share * slot.width


def _group(slots: Sequence[Slot]) -> Iterator[tuple[float, float, str]]:
    for part, name in (("tower", "tower layer"), ("decoder", "decoder layer")):
        inside = [slot for slot in slots if slot.part == part and slot.layer is not None]
        if inside:
            yield inside[0].x, inside[-1].x + inside[-1].width, name
