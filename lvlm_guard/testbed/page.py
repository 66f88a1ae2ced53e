"""What a demo measured as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, zip_longest
from math import isnan
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from lvlm_guard.bench.scoring.intervals import Interval
from lvlm_guard.testbed.demo import DemoResult
from lvlm_guard.testbed.evaluate import Answer, is_right
from lvlm_guard.testbed.files import write_whole
from lvlm_guard.testbed.measures import DEMO_MEASURES, Comparison, Measure
from lvlm_guard.testbed.world.language import NAMED, caption, mentions
from lvlm_guard.testbed.world.scenes import Scene, scene
from lvlm_guard.testbed.world.sheet import oddity, png

EXAMPLES = 12
"""Scenes of each split that are shown, the same number of each broken habit."""

QUESTIONS = 4
"""Questions shown with each of them."""

_LEFT, _RIGHT, _TOP, _ROW = 300.0, 740.0, 34.0, 50.0


@dataclass(frozen=True)
class Whisker:
    """One score in the chart; positions are in the chart's own units, `bounds` is None where they are not known."""

    side: str
    y: float
    at: float
    bounds: tuple[float, float] | None
    label: str


@dataclass(frozen=True)
class Row:
    """One measure: its line in the table and its place in the chart. `verdict` is better, worse or unclear."""

    level: str
    title: str
    aim: str
    plain: str
    guarded: str
    difference: str
    verdict: str
    n: int
    y: float
    whiskers: tuple[Whisker, ...]


@dataclass(frozen=True)
class Piece:
    """A run of a caption's text; `invented` where it names an object that is not in the picture."""

    text: str
    invented: bool


@dataclass(frozen=True)
class Reply:
    """One question answered twice."""

    question: str
    truth: str
    plain: str
    guarded: str
    plain_right: bool
    guarded_right: bool


@dataclass(frozen=True)
class Example:
    """One scene with what was said about it; `picture` is a PNG in base64.

    `captions` are the plain and the guarded one, None for a scene that was only asked about. `oddity` says which habit
    the scene breaks and is empty where it breaks none.
    """

    name: str
    picture: str
    truth: str
    oddity: str
    captions: tuple[tuple[Piece, ...], tuple[Piece, ...]] | None
    replies: tuple[Reply, ...]
    change: str


def render(result: DemoResult) -> str:
    """The whole page; the same result gives the same text."""
    rows = {split: _rows(levels) for split, levels in result.splits.items()}
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            result=result,
            rows=rows,
            levels={split: groupby(of_split, key=lambda row: row.level) for split, of_split in rows.items()},
            ticks=[(f"{tenth / 10:.1f}", _across(tenth / 10)) for tenth in range(0, 11, 2)],
            examples={split: examples(result, split) for split in result.splits},
            shown=EXAMPLES,
            costs=(("plain", result.plain_cost), ("guarded", result.guarded_cost)),
        )
    )


def write(result: DemoResult, path: Path) -> None:
    """Renders the page into a file, which is replaced as a whole or not at all."""
    write_whole(path, render(result).encode("utf-8"))


@cache
def environment() -> Environment:
    """Where the page's templates are; all of them can be included by name."""
    loader = PackageLoader("lvlm_guard.testbed", "templates")
    # Answers are text of a model, so everything is escaped, whatever a template is called.
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _across(value: float) -> float:
    return round(_LEFT + value * (_RIGHT - _LEFT), 1)


def _rows(levels: Mapping[str, Comparison]) -> list[Row]:
    return [_row(DEMO_MEASURES[name], compared, place) for place, (name, compared) in enumerate(levels.items())]


def _row(measure: Measure, compared: Comparison, place: int) -> Row:
    change = compared.difference
    y = _TOP + _ROW * (place + 0.5)
    sides = (("plain", compared.plain, y - 8), ("guarded", compared.guarded, y + 8))
    return Row(
        level=measure.level,
        title=measure.title,
        aim="higher is better" if measure.higher_is_better else "lower is better",
        plain=_told(compared.plain),
        guarded=_told(compared.guarded),
        difference=f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]",
        verdict=measure.verdict(change),
        n=compared.n,
        y=y,
        whiskers=tuple(_whisker(*side) for side in sides if not isnan(side[1].value)),
    )


def _told(score: Interval) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _whisker(side: str, score: Interval, y: float) -> Whisker:
    known = not (isnan(score.low) or isnan(score.high))
    bounds = (_across(score.low), _across(score.high)) if known else None
    return Whisker(side, y, _across(score.value), bounds, f"{side}: {_told(score)}")


def examples(result: DemoResult, split: str, count: int = EXAMPLES) -> list[Example]:
    """Scenes of a split, each broken habit in turn, those first that answers differ on."""
    told: dict[str, list[Pair]] = {}
    for pair in _pairs(result):
        if pair[0].split == split:
            told.setdefault(pair[0].scene, []).append(pair)
    groups: dict[str | None, list[Example]] = {}
    for pairs in sorted(told.values(), key=lambda pairs: _number(pairs[0][0].scene)):
        groups.setdefault(pairs[0][0].broken, []).append(_example(pairs))
    ordered = [sorted(group, key=lambda one: _ORDER.index(one.change)) for group in groups.values()]
    return [one for turn in zip_longest(*ordered) for one in turn if one is not None][:count]


Pair = tuple[Answer, Answer]
"""One prompt answered plain and guarded."""

_ORDER = ("names other things", "answers differently", "says it differently", "same answers")


def _pairs(result: DemoResult) -> Iterator[Pair]:
    guarded = {(answer.scene, answer.prompt): answer for answer in result.answers.get("guarded", ())}
    for plain in result.answers.get("plain", ()):
        if (plain.scene, plain.prompt) in guarded:
            yield plain, guarded[plain.scene, plain.prompt]


def _number(name: str) -> int:
    return int(name.rsplit("-", 1)[1])


def _example(pairs: Sequence[Pair]) -> Example:
    described = next((pair for pair in pairs if pair[0].level == "caption"), None)
    asked = [pair for pair in pairs if pair[0].level != "caption"]
    telling = sorted(asked, key=lambda pair: (pair[0].text == pair[1].text, is_right(pair[0])))
    drawn = _drawn(pairs[0][0].scene)
    return Example(
        name=drawn.name,
        picture=b64encode(png(drawn.picture)).decode("ascii"),
        truth=caption(drawn),
        oddity=oddity(drawn.broken) if drawn.broken else "",
        captions=(marked(described[0].text, drawn.present), marked(described[1].text, drawn.present))
        if described
        else None,
        replies=tuple(_reply(*pair) for pair in telling[:QUESTIONS]),
        change=_change(described, asked),
    )


def _change(described: Pair | None, asked: Sequence[Pair]) -> str:
    """How far the two sides are apart, in the words of `_ORDER`."""
    if described and sorted(mentions(described[0].text)) != sorted(mentions(described[1].text)):
        return _ORDER[0]
    if any(plain.text != guarded.text for plain, guarded in asked):
        return _ORDER[1]
    return _ORDER[2 if described and described[0].text != described[1].text else 3]


def _drawn(name: str) -> Scene:
    """The scene that answers are about, drawn again from its name."""
    split, seed, index = name.rsplit("-", 2)
    return scene(split, int(index), int(seed))


def _reply(plain: Answer, guarded: Answer) -> Reply:
    return Reply(plain.prompt, plain.truth, plain.text, guarded.text, is_right(plain), is_right(guarded))


def marked(text: str, present: Collection[str]) -> tuple[Piece, ...]:
    """Cuts a caption so that every object that is not in `present` is a piece of its own, its colour included."""
    pieces, end = [], 0
    for named in NAMED.finditer(text):
        if named[1].lower() not in present:
            pieces += [Piece(text[end : named.start()], invented=False), Piece(named[0], invented=True)]
            end = named.end()
    pieces.append(Piece(text[end:], invented=False))
    return tuple(piece for piece in pieces if piece.text)
