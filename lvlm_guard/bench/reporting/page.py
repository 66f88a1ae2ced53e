"""A run's report as one HTML page that needs nothing else: no network, no other file, and no script to be read."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from lvlm_guard.bench.files import write_whole
from lvlm_guard.bench.items import Item, Said
from lvlm_guard.bench.reporting import charts, examples, tables, verdicts
from lvlm_guard.bench.reporting.charts import Levels, Scatter
from lvlm_guard.bench.reporting.examples import Chosen, Example, Invented
from lvlm_guard.bench.reporting.results import Results
from lvlm_guard.bench.reporting.tables import Table
from lvlm_guard.bench.reporting.verdicts import Verdict
from lvlm_guard.bench.running.choosing import made_suite, measures
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
    "helps": "\u25b2", "unproven": "\u25b3", "says less": "\u25bd", "only shifts bias": "\u21c4",
    "indistinguishable from greedy": "\u2248", "changed nothing": "=", "hurts": "\u25bc", "not compared": "?",
    "unfinished": "\u2026", "refused": "\u2715",
}  # fmt: skip
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]")
"""Control characters, marks that turn the direction of writing, and halves of characters."""


@dataclass(frozen=True)
class Source:
    """What a page shows of one suite besides figures.

    Args:
        said: Answers by system.
        measures: The suite's measures, read as the results were.
        picture: The picture of an item by name; it may raise `InputError`, which the page then tells.
        invented: Finds the words of an answer that name what is not in the picture; None marks nothing.
        remark: Says in a few words what is special about an item's picture, empty where nothing is; None says nothing.
    """

    said: Mapping[str, Sequence[Said]]
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
    told: Mapping[str, Any]
    parser: str
    facts: Sequence[tuple[str, str]]
    verdicts: Sequence[Verdict]
    scatter: Scatter | None
    levels: Levels | None
    overview: Table
    measures: Sequence[Table]
    chosen: Chosen
    pictures: Mapping[str, Picture]
    remarks: Mapping[str, str]

    @property
    def tally(self) -> str:
        """How many stacks got each verdict, as in "1 helps, 3 hurts"."""
        counts = Counter(one.kind for one in self.verdicts)
        return ", ".join(f"{counts[kind]} {kind}" for kind in verdicts.KINDS if counts[kind])


def write(record: Record, results: Results, path: Path, data: Path | None = None) -> None:
    """Write the report of a run; the file is replaced as a whole or not at all.

    Args:
        record: The run, for its answers.
        results: Its figures; their parser may be another than the run was begun with.
        path: The HTML file.
        data: Where the suites' files and pictures lie; where the run found them unless told.

    Raises:
        InputError: It cannot be written, a suite lacks files that it needs to read answers, or there is no such suite any
            more. A picture that is gone is told in its place.
    """
    sources = {name: build_source(record, results, name, data or record.data) for name in record.suites}
    write_whole(path, render(results, sources).encode("utf-8"))


def build_source(record: Record, results: Results, name: str, data: Path | None = None) -> Source:
    """Return what the page shows of one suite of a run besides figures; raises as `write` does."""
    told = record.manifest["suites"][name]
    suite = made_suite(told["name"], told["arguments"])
    return Source(
        said={system: record.said(system, name) for system in record.systems},
        measures=measures(suite, results.parsers[name], data),
        picture=partial(suite.picture, data),
        invented=getattr(suite, "invented", None),
        remark=getattr(suite, "remark", None),
    )


def render(results: Results, sources: Mapping[str, Source]) -> str:
    """The whole page; the same results and answers give the same text.

    Args:
        results: The figures.
        sources: What is shown besides, by suite; a suite without is shown by its figures alone.
    """
    nothing = Source({}, (), _no_picture)
    sections = [build_section(results, name, sources.get(name, nothing)) for name in results.manifest["suites"]]
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            manifest=results.manifest,
            facts=facts(results.manifest),
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


@cache
def environment() -> Environment:
    """Where the page's templates are; all of them can be included by name."""
    loader = PackageLoader("lvlm_guard.bench.reporting", "templates")
    # Answers are text of a model, so everything is escaped, whatever a template is called.
    return Environment(
        loader=loader,
        autoescape=True,
        finalize=_seen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _seen(value: Any) -> Any:
    """A value as a page may hold it: what has no sign, or would turn the writing round, becomes a sign for that."""
    return _UNSEEN.sub("\ufffd", value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def build_section(results: Results, name: str, source: Source) -> Section:
    """Return everything that the page says about one suite."""
    told = results.manifest["suites"][name]
    stacks = [system for system, one in results.manifest["systems"].items() if one["role"] == "stack"]
    measure = verdicts.headline(results, name)
    order = _order(results, name, measure)
    chosen = examples.choose(source.said, stacks, source.measures, results.parsers[name], source.invented)
    return Section(
        name=name,
        told=told,
        parser=results.parsers[name],
        facts=_suite_facts(told, results.parsers[name]),
        verdicts=_sorted(verdicts.verdicts(results, name, source.measures, source.said), order),
        scatter=charts.scatter(results, name, measure) if measure is not None else None,
        levels=charts.levels(results, name, order),
        overview=tables.overview(results, name, order),
        measures=tables.measures(results, name, order),
        chosen=chosen,
        pictures=_pictures(chosen.examples, source.picture),
        remarks={example.item.id: source.remark(example.item) for example in chosen.examples} if source.remark else {},
    )


def _order(results: Results, suite: str, measure: str | None) -> list[str]:
    """Greedy, the stacks by the headline measure with the best first, then the controls; those without a score last."""
    outcomes = [one for one in results.outcomes if one.suite == suite]
    scores = results.of(suite, measure) if measure is not None else {}

    def rank(name: str) -> tuple[bool, float]:
        if (score := scores.get(name)) is None or math.isnan(score.found.value):
            return True, 0.0
        return False, -score.found.value if score.higher_is_better else score.found.value

    plain = [one.system for one in outcomes if one.system == GREEDY]
    stacks = sorted((one.system for one in outcomes if one.role == "stack"), key=rank)
    controls = sorted((one.system for one in outcomes if one.role != "stack" and one.system != GREEDY), key=rank)
    return [*plain, *stacks, *controls]


def _sorted(found: Iterable[Verdict], order: Sequence[str]) -> list[Verdict]:
    kinds = list(verdicts.KINDS)
    return sorted(found, key=lambda one: (kinds.index(one.kind), order.index(one.system)))


def facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, in words: names and what is true of them."""
    model, hardware, off = manifest["model"], manifest["hardware"], manifest["without"]
    digests = f"config {model['config']}, weights {model['weights']}"
    device = hardware["accelerator"] or hardware["device"]
    controls = [name for name, one in manifest["systems"].items() if one["role"] == "control"]
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


def _suite_facts(told: Mapping[str, Any], parser: str) -> list[tuple[str, str]]:
    begun = "" if parser == told["parser"] else f" (the run was begun with {told['parser']})"
    arguments = ", ".join(f"{name} = {json.dumps(value)}" for name, value in told["arguments"].items())
    unusable = [f"{told['unusable_rows']}, first {told['problems'][0]}"] if told["unusable_rows"] else []
    return [
        ("suite", f"{told['title']}, {told['items']} items about {told['pictures']} pictures"),
        ("answers read by", f"parser {parser}{begun}"),
        *([("arguments", arguments)] if arguments else []),
        *(("rows that could not be used", one) for one in unusable),
        ("licence", told["licence"]),
    ]


def _stacks(manifest: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Every system with its role, its decoding and its strategies as they were configured."""
    return [
        (name, one["role"], one["decoding"], json.dumps(one["stack"], ensure_ascii=False))
        for name, one in manifest["systems"].items()
    ]


def _pictures(shown: Iterable[Example], picture: Callable[[str], Image.Image]) -> dict[str, Picture]:
    """Thumbnails of the pictures that examples are about."""
    names = dict.fromkeys(one.item.image for one in shown if one.item.image is not None)
    return {name: _thumbnail(name, picture) for name in names}


def _thumbnail(name: str, picture: Callable[[str], Image.Image]) -> Picture:
    try:
        found = picture(name).convert("RGB")
    except InputError as error:
        return Picture(missing=str(error))
    found.thumbnail((THUMBNAIL, THUMBNAIL))
    content = BytesIO()
    found.save(content, "PNG", optimize=True)
    return Picture(b64encode(content.getvalue()).decode("ascii"), *found.size)
