"""The table of all runs as a picture: a row for every system, a square for every model, by split and level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from scenes_pages import Run

from lvlm_guard.bench.reporting import verdicts
from lvlm_guard.bench.reporting.results import Score
from lvlm_guard.bench.running import systems

SIDE, GAP, BLOCK_GAP, ROW = 22, 3, 26, 26
LEFT, TOP, BOTTOM = 176, 86, 78
NAME, LEAST = 62, 760
"""Width of a level's name, and the least width of the picture."""

FULL = 0.1
"""A difference from which on the colour is as strong as it gets."""

BETTER, WORSE = (33, 102, 172), (178, 24, 43)
STYLE = """
  text { font: 13px 'DejaVu Sans', Verdana, sans-serif; fill: #1d2430 }
  .small { font-size: 11px; fill: #4b5563 }
  .head { font-weight: bold }
  .paper { fill: #ffffff }
  .line { stroke: #d5dae1 }
  .sure { fill: none; stroke: #1d2430; stroke-width: 1.6 }
"""


def draw(runs: Sequence[Run]) -> str:
    """The picture as SVG."""
    names = _names(runs)
    splits = [
        (split, list(own)) for split, own in groupby(sorted(runs, key=lambda run: run.title), lambda run: run.title)
    ]
    starts, width = _starts(splits)
    height = TOP + ROW * len(names) + BOTTOM
    body = [
        *_heads(splits, starts),
        *_rows(names, splits, starts, width),
        *_legend(TOP + ROW * len(names) + 22, splits),
    ]
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="Differences to greedy by system, level, split and model">'
    )
    paper = f'<rect class="paper" width="{width}" height="{height}" rx="8"/>'
    return "\n".join([opening, f"<style>{STYLE}</style>", paper, *body, "</svg>"]) + "\n"


def _names(runs: Sequence[Run]) -> list[str]:
    """Strategies first, controls below them; in the order of the runs."""
    roles = {one.system: one.role for run in runs for one in run.scored.outcomes if one.system != systems.GREEDY}
    return sorted(roles, key=lambda name: roles[name] == "control")


def _starts(splits: Sequence[tuple[str, Sequence[Run]]]) -> tuple[dict[tuple[str, str], int], int]:
    """Where the block of each split and level begins, and where the last one ends."""
    starts, at = {}, LEFT
    for split, own in splits:
        for level in own[0].headlines.values():
            starts[split, level] = at
            at += max(len(own) * (SIDE + GAP), NAME) + GAP * 3
        at += BLOCK_GAP
    return starts, max(at, LEAST)


def _heads(splits: Sequence[tuple[str, Sequence[Run]]], starts: dict[tuple[str, str], int]) -> Iterator[str]:
    for split, own in splits:
        first = starts[split, next(iter(own[0].headlines.values()))]
        yield f'<text class="head" x="{first}" y="28">{escape(split)}</text>'
        for level in own[0].headlines.values():
            x = starts[split, level]
            yield f'<text x="{x}" y="52">{level}</text>'
            for place in range(len(own)):
                middle = x + place * (SIDE + GAP) + SIDE / 2
                yield f'<text class="small" text-anchor="middle" x="{middle}" y="72">{place + 1}</text>'


def _rows(
    names: Sequence[str],
    splits: Sequence[tuple[str, Sequence[Run]]],
    starts: dict[tuple[str, str], int],
    width: int,
) -> Iterator[str]:
    columns = list(_columns(splits, starts))
    for number, name in enumerate(names):
        y = TOP + number * ROW
        yield f'<line class="line" x1="16" x2="{width - 16}" y1="{y + ROW - 2}" y2="{y + ROW - 2}"/>'
        yield f'<text x="20" y="{y + 16}">{escape(name)}</text>'
        for x, where, scores in columns:
            yield from _square(scores.get(name), x, y, where)


def _columns(
    splits: Sequence[tuple[str, Sequence[Run]]], starts: dict[tuple[str, str], int]
) -> Iterator[tuple[int, str, dict[str, Score]]]:
    """Where every column of squares stands, the run it is of, and its scores by system."""
    for split, own in splits:
        for measure, level in own[0].headlines.items():
            for place, run in enumerate(own):
                yield starts[split, level] + place * (SIDE + GAP), run.name, run.scored.of(run.world, measure)


def _square(score: Score | None, x: float, y: float, where: str) -> Iterator[str]:
    """The difference to greedy; framed where it is beyond chance."""
    test = None if score is None else score.against_greedy
    if score is None or test is None:
        return
    gain = test.difference.value if score.higher_is_better else -test.difference.value
    told = f"{score.system}, {where}, {score.title}: {test.difference.value:+.3f}, {verdicts.format_p(verdicts.corrected(test))}"
    yield f'<rect x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" rx="3" fill="{_colour(gain)}"><title>{escape(told)}</title></rect>'
    if verdicts.corrected(test) < verdicts.SURE:
        yield f'<rect class="sure" x="{x + 1}" y="{y + 1}" width="{SIDE - 2}" height="{SIDE - 2}" rx="3"/>'
        sign = "+" if gain > 0 else "-"
        yield f'<text text-anchor="middle" x="{x + SIDE / 2}" y="{y + 16}">{sign}</text>'


def _colour(gain: float) -> str:
    """White at nothing, stronger up to `FULL`."""
    strength = min(abs(gain) / FULL, 1.0) * 0.75
    shade = [round(255 + (end - 255) * strength) for end in (BETTER if gain > 0 else WORSE)]
    return f"rgb({shade[0]},{shade[1]},{shade[2]})"


def _legend(y: float, splits: Sequence[tuple[str, Sequence[Run]]]) -> Iterator[str]:
    models = dict.fromkeys(f"{run.architecture} {run.model}" for _, own in splits for run in own)
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(models, 1))
    yield f'<text class="small" x="20" y="{y}">Models: {escape(numbered)}.</text>'
    told = (
        f"Blue is better than greedy, red worse, full colour at {FULL} and more; framed where beyond chance after Holm."
    )
    yield f'<text class="small" x="20" y="{y + 18}">{told}</text>'
    measures = "Habit-balanced accuracy; caption: share of named objects that are absent."
    yield f'<text class="small" x="20" y="{y + 36}">{measures}</text>'
