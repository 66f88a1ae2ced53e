"""A run's report as one HTML page that needs nothing else: no network, no other file, and no script to be read."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm_guard.bench.files import write_whole
from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.reporting import charts, examples, level_verdicts, planes, tables, verdicts
from lvlm_guard.bench.reporting.answers import COMPUTED
from lvlm_guard.bench.reporting.charts import Levels, Scatter
from lvlm_guard.bench.reporting.comparable import describe_skipped
from lvlm_guard.bench.reporting.examples import Example, ExampleSet, Invented
from lvlm_guard.bench.reporting.judging import SuiteVerdicts, judge_suite, read_suite
from lvlm_guard.bench.reporting.level_verdicts import LevelTable
from lvlm_guard.bench.reporting.page_templates import environment
from lvlm_guard.bench.reporting.planes import PlaneChart
from lvlm_guard.bench.reporting.results import Results
from lvlm_guard.bench.reporting.tables import Table
from lvlm_guard.bench.reporting.verdicts import Verdict
from lvlm_guard.bench.running.manifest import describe_left_out
from lvlm_guard.bench.running.store import Record
from lvlm_guard.bench.running.systems import CONTROLS, GREEDY
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.errors import InputError

THUMBNAIL = 192
"""Longest side of a picture in the page, in pixels."""

REPLIES = 6
"""Answers of an example that are shown at once; further ones unfold."""

NAMED = 8
"""Systems that are named at once where they gave the same answer."""

SYMBOLS: Mapping[str, str] = {
    "helps": "\u25b2", "unproven": "\u25b3", "says less": "\u25bd", "moves habit": "\u21c5",
    "only shifts bias": "\u21c4",
    "indistinguishable from greedy": "\u2248", "changed nothing": "=", "hurts": "\u25bc", "too few pictures": "?",
    "not compared": "?",
    "unfinished": "\u2026", "refused": "\u2715",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What a page shows of one suite besides figures.

    Args:
        answers: Answers by system.
        measures: The suite's measures, read as the results were.
        picture: The picture of an item by name; it may raise `InputError`, whose message the page then shows.
        invented: Finds the words of an answer that name what is not in the picture; None marks nothing.
        remark: Says in a few words what is special about an item's picture, empty where nothing is; None says nothing.
    """

    answers: Mapping[str, Sequence[AnsweredItem]]
    measures: Sequence[Measure]
    picture: Callable[[str], Image.Image]
    invented: Invented | None = None
    remark: Callable[[Item], str] | None = None


@dataclass(frozen=True)
class Picture:
    """A PNG in base64 with its size, or why there is none."""

    data: str = ""
    width: int = 0
    height: int = 0
    missing: str = ""

    @property
    def is_drawn(self) -> bool:
        """Whether it is so small that its pixels are shown as squares."""
        return max(self.width, self.height) <= THUMBNAIL // 2


@dataclass(frozen=True)
class Section:
    """One suite in the page."""

    name: str
    description: Mapping[str, Any]
    parser: str
    facts: Sequence[tuple[str, str]]
    verdicts: Sequence[Verdict]
    by_level: LevelTable | None
    plane: PlaneChart | None
    plane_table: Table | None
    scatter: Scatter | None
    levels: Levels | None
    overview: Table
    measures: Sequence[Table]
    chosen: ExampleSet
    pictures: Mapping[str, Picture]
    remarks: Mapping[str, str]

    @property
    def tally(self) -> str:
        """How many stacks got each verdict, as in "1 helps, 3 hurts"."""
        counts = Counter(verdict.kind for verdict in self.verdicts)
        return ", ".join(f"{counts[kind]} {kind}" for kind in verdicts.KINDS if counts[kind])


def write(
    record: Record,
    results: Results,
    path: Path,
    data: Path | None = None,
    judged: Mapping[str, SuiteVerdicts] | None = None,
) -> None:
    """Write the report of a run; the file is replaced as a whole or not at all.

    Args:
        record: The run, for its answers.
        results: Its figures; their parser may differ from the run's.
        path: The HTML file.
        data: Where the suites' files and pictures lie; by default where the run found them.
        judged: The verdicts by suite, where they are known already.

    Raises:
        InputError: It cannot be written, a suite lacks files that it needs to read answers, or there is no such suite any
            more. A missing picture is named in its place.
    """
    sources = {name: build_source(record, results, name, data or record.data) for name in record.suites}
    write_whole(path, render(results, sources, judged).encode("utf-8"))


def build_source(record: Record, results: Results, name: str, data: Path | None = None) -> Source:
    """Return what the page shows of one suite of a run besides figures; raises as `write` does."""
    suite, measures, answers = read_suite(record, results, name, data)
    return Source(
        answers=answers,
        measures=measures,
        picture=partial(suite.picture, data),
        invented=getattr(suite, "invented", None),
        remark=getattr(suite, "remark", None),
    )


def render(results: Results, sources: Mapping[str, Source], judged: Mapping[str, SuiteVerdicts] | None = None) -> str:
    """Return the whole page; the same results and answers give the same text.

    Args:
        results: The figures.
        sources: What is shown besides, by suite; a suite without is shown by its figures alone.
        judged: The verdicts by suite, where they are known already.
    """
    nothing = Source({}, (), _no_picture)
    sections = [
        build_section(results, name, sources.get(name, nothing), (judged or {}).get(name))
        for name in results.manifest["suites"]
    ]
    return (
        environment("lvlm_guard.bench.reporting")
        .get_template("report.html.jinja")
        .render(
            manifest=results.manifest,
            facts=[*facts(results.manifest), *(("edited since the run", line) for line in results.edits)],
            stacks=_stacks(results.manifest),
            sections=sections,
            kinds=verdicts.KINDS,
            symbols=SYMBOLS,
            charts=charts,
            replies=REPLIES,
            named=NAMED,
        )
    )


def _no_picture(image: str) -> Image.Image:
    raise InputError(f"No picture {image}: none were handed over.")


def build_section(results: Results, name: str, source: Source, judged: SuiteVerdicts | None = None) -> Section:
    """Return everything that the page says about one suite; its verdicts are found where they are not given."""
    description = results.manifest["suites"][name]
    stacks = [system for system, entry in results.manifest["systems"].items() if entry["role"] == "stack"]
    measure = verdicts.headline(results, name)
    order = _order(results, name, measure)
    suite_verdicts = judged or judge_suite(results, name, source.measures, source.answers)
    chosen = examples.choose(source.answers, stacks, source.measures, results.parsers[name], source.invented)
    return Section(
        name=name,
        description=description,
        parser=results.parsers[name],
        facts=[*_suite_facts(description, results.parsers[name]), *_list_skipped(results, name)],
        verdicts=_sort_verdicts(suite_verdicts.headline, order),
        by_level=level_verdicts.tabulate(suite_verdicts.levels, order),
        plane=planes.draw_plane(results, name),
        plane_table=planes.tabulate_plane(results, name, order),
        scatter=charts.scatter(results, name, measure) if measure is not None else None,
        levels=charts.levels(results, name, order),
        overview=tables.overview(results, name, order),
        measures=tables.measures(results, name, order),
        chosen=chosen,
        pictures=_pictures(chosen.examples, source.picture),
        remarks={example.item.id: source.remark(example.item) for example in chosen.examples} if source.remark else {},
    )


def _order(results: Results, suite: str, measure: str | None) -> list[str]:
    """Sort systems: greedy, stacks by the headline measure with the best first, controls.

    Those without a score come last.
    """
    outcomes = [outcome for outcome in results.outcomes if outcome.suite == suite]
    scores = results.of(suite, measure) if measure is not None else {}

    def rank(name: str) -> tuple[bool, float]:
        if (score := scores.get(name)) is None or math.isnan(score.found.value):
            return True, 0.0
        return False, -score.found.value if score.higher_is_better else score.found.value

    plain = [outcome.system for outcome in outcomes if outcome.system == GREEDY]
    stacks = sorted((outcome.system for outcome in outcomes if outcome.role == "stack"), key=rank)
    controls = sorted(
        (outcome.system for outcome in outcomes if outcome.role != "stack" and outcome.system != GREEDY), key=rank
    )
    return [*plain, *stacks, *controls]


def _sort_verdicts(judgements: Iterable[Verdict], order: Sequence[str]) -> list[Verdict]:
    kinds = list(verdicts.KINDS)
    return sorted(judgements, key=lambda verdict: (kinds.index(verdict.kind), order.index(verdict.system)))


def facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the run in words: pairs of a heading and its text."""
    model, hardware, off = manifest["model"], manifest["hardware"], manifest["without"]
    digests = f"config {model['config']}, weights {model['weights']}"
    device = hardware["accelerator"] or hardware["device"]
    controls = [
        f"{name} ({entry['decoding']})" if entry["decoding"] == COMPUTED["decoding"] else name
        for name, entry in manifest["systems"].items()
        if entry["role"] == "control"
    ]
    limit = f", at most {manifest['limit']} items a suite" if manifest["limit"] is not None else ""
    return [
        ("model", f"{model['id']} ({model['class']}, {model['dtype']}, attention {model['attention']})"),
        ("fingerprint", digests),
        ("seed", f"{manifest['seed']}; batches of at most {manifest['batch']}{limit}"),
        ("hardware", f"{device}, {hardware['system']} {hardware['machine']}, {hardware['threads']} threads"),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())),
        ("controls", ", ".join(controls) or "none"),
        ("switched off", f"{', '.join(off)} (of {', '.join(CONTROLS)})" if off else "none of the controls"),
    ]


def _suite_facts(description: Mapping[str, Any], parser: str) -> list[tuple[str, str]]:
    original = "" if parser == description["parser"] else f" (the run was started with {description['parser']})"
    arguments = ", ".join(f"{name} = {json.dumps(value)}" for name, value in description["arguments"].items())
    unusable = (
        [f"{description['unusable_rows']}, first {description['problems'][0]}"] if description["unusable_rows"] else []
    )
    return [
        ("suite", f"{description['title']}, {description['items']} items about {description['pictures']} pictures"),
        ("answers read by", f"parser {parser}{original}"),
        *([("arguments", arguments)] if arguments else []),
        *(("rows that could not be used", row) for row in unusable),
        *([("left out", left_out)] if (left_out := describe_left_out(description)) is not None else []),
        ("licence", description["licence"]),
    ]


def _list_skipped(results: Results, suite: str) -> list[tuple[str, str]]:
    described = {outcome.system: describe_skipped(outcome) for outcome in results.outcomes if outcome.suite == suite}
    return [(f"skipped by {system}", text) for system, text in described.items() if text is not None]


def _stacks(manifest: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return every system with its role, its decoding and the parameters of its strategies."""
    return [
        (name, entry["role"], entry["decoding"], json.dumps(entry["stack"], ensure_ascii=False))
        for name, entry in manifest["systems"].items()
    ]


def _pictures(chosen: Iterable[Example], picture: Callable[[str], Image.Image]) -> dict[str, Picture]:
    """Draw thumbnails of the pictures that examples are about."""
    names = dict.fromkeys(example.item.image for example in chosen if example.item.image is not None)
    return {name: _thumbnail(name, picture) for name in names}


def _thumbnail(name: str, picture: Callable[[str], Image.Image]) -> Picture:
    try:
        thumbnail = picture(name).convert("RGB")
    except InputError as error:
        return Picture(missing=str(error))
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    content = BytesIO()
    thumbnail.save(content, "PNG", optimize=True)
    return Picture(b64encode(content.getvalue()).decode("ascii"), *thumbnail.size)
