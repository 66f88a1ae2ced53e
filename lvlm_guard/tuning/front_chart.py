"""The front of a search as a drawing: gain over plain generate against cost, as an SVG file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lvlm_guard.bench.reporting.axes import Scale, lay_out_ticks
from lvlm_guard.tuning.candidates import describe_entries
from lvlm_guard.tuning.records import TrialRecord

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 30, 50
BLUE, GREY, RED = "#0072b2", "#767676", "#d55e00"
"""Colours that colour-blind readers tell apart; shapes say the same."""


def draw_front(records: Sequence[TrialRecord], front: Sequence[TrialRecord], budget: float) -> str:
    """Return the drawing.

    Args:
        records: All trials; those that answered something are drawn.
        front: Those that no other one beats.
        budget: Drawn as a line.
    """
    points = [record for record in records if record.scores]
    across = _build_scale([1.0, budget, *(record.cost["answer"] for record in points)], LEFT, WIDTH - RIGHT, 0.1)
    up = _build_scale([0.0, *(record.gain for record in points)], HEIGHT - BOTTOM, TOP, 0.02)
    numbers = {record.number for record in front}
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *_draw_axes(across, up),
            *_draw_lines(across, up, budget),
            *(_draw_mark(across, up, record, is_front=record.number in numbers) for record in points),
            "</svg>",
            "",
        ]
    )


def _build_scale(values: Sequence[float], start: float, end: float, least: float) -> Scale:
    """Return an axis that holds all values with some room, and spans at least so much."""
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), (least - (high - low)) / 2)
    return Scale(low - room, high + room, start, end)


def _draw_axes(across: Scale, up: Scale) -> list[str]:
    bottom = HEIGHT - BOTTOM
    costs, gains = (lay_out_ticks(scale.low, scale.high, scale) for scale in (across, up))
    return [
        f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="{GREY}"/>',
        *(f'<text x="{tick.at}" y="{bottom + 18}" text-anchor="middle">{tick.label}</text>' for tick in costs),
        *(f'<text x="{LEFT - 8}" y="{tick.at + 4}" text-anchor="end">{tick.label}</text>' for tick in gains),
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 12}" text-anchor="middle">forwards of an answer, plain generate = 1</text>',
        f'<text x="{LEFT}" y="{TOP - 12}">gain over plain generate, calibration items</text>',
    ]


def _draw_lines(across: Scale, up: Scale, budget: float) -> list[str]:
    zero, limit, bottom = up.at(0.0), across.at(budget), HEIGHT - BOTTOM
    return [
        f'<path d="M{LEFT} {zero}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-dasharray="2 3"/>',
        f'<path d="M{limit} {TOP}V{bottom}" stroke="{RED}" stroke-dasharray="6 3"/>',
        f'<text x="{limit - 4}" y="{TOP + 10}" text-anchor="end" fill="{RED}">budget</text>',
    ]


def _draw_mark(across: Scale, up: Scale, record: TrialRecord, *, is_front: bool) -> str:
    x, y = across.at(record.cost["answer"]), up.at(record.gain)
    title = f"<title>{escape(f'{record.number}: {describe_entries(record.entries)}, {record.state}')}</title>"
    if is_front:
        return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{BLUE}">{title}</rect>'
    fill = GREY if record.is_finished else "none"
    return f'<circle cx="{x}" cy="{y}" r="3.5" fill="{fill}" stroke="{GREY}">{title}</circle>'
