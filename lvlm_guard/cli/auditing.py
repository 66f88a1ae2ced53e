"""`lvlm-guard bench audit`: what a suite gives away without its pictures, and which errors of a model that explains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from lvlm_guard import loading
from lvlm_guard.cli.options import Limit, SuiteData
from lvlm_guard.errors import InputError

if TYPE_CHECKING:
    from lvlm_guard.bench.auditing.audit import Audit

TEXTS = 10
"""Questions that are printed as giving their answers away."""


def audit(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite, or one with arguments: scenes:count=100.")],
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A run of this suite, to say which of the model's errors are explained."),
    ] = None,
    data: SuiteData = None,
    limit: Limit = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Say how far rules get that never look, which questions give their answers away, and what errors that explains."""
    loading.quieten()
    from lvlm_guard.bench.auditing.audit import audit_items  # noqa: PLC0415 - slow to import
    from lvlm_guard.bench.items import AnsweredItem  # noqa: PLC0415 - as above
    from lvlm_guard.bench.reporting.results import to_plain  # noqa: PLC0415 - as above
    from lvlm_guard.bench.running import store  # noqa: PLC0415 - as above
    from lvlm_guard.bench.running.choosing import choose_suites, load_measures  # noqa: PLC0415 - as above
    from lvlm_guard.bench.running.gathering import gather  # noqa: PLC0415 - as above
    from lvlm_guard.bench.running.manifest import RunPlan  # noqa: PLC0415 - as above
    from lvlm_guard.bench.running.systems import GREEDY  # noqa: PLC0415 - as above

    ((name, choice),) = choose_suites([suite]).items()
    items = gather(RunPlan({name: choice}, (), data=data, limit=limit)).items[name]
    answers: list[AnsweredItem] = []
    if run is not None:
        record = store.read(run)
        labels = [label for label in record.suites if record.manifest["suites"][label]["name"] == choice.suite.name]
        if not labels or GREEDY not in record.systems:
            raise InputError(f"{run} holds no plain answers to {choice.suite.name}. Name a run of that suite.")
        answers = record.read_answers(GREEDY, labels[0])
    audited = audit_items(items, load_measures(choice.suite, choice.parser, data), answers)
    if as_json:
        typer.echo(json.dumps(to_plain(audited), indent=2))
        return
    _show(audited, Console())


def _show(audited: Audit, console: Console) -> None:
    from lvlm_guard.bench.scoring.intervals import format_interval  # noqa: PLC0415 - slow to import

    _print(
        console,
        "Answers",
        ("level", "kind", "questions", "most frequent", "share", "as habit says"),
        [
            (
                b.level,
                b.kind,
                str(b.questions),
                b.frequent,
                f"{b.share:.2f}",
                "" if b.habitual is None else f"{b.habitual:.2f}",
            )
            for b in audited.balances
        ],
    )
    _print(
        console,
        "Rules that never look",
        ("rule", "level", "right [95 %]", "by chance", "questions", "headline"),
        [
            (
                score.rule, score.level, format_interval(score.accuracy, score.pictures), f"{score.chance:.2f}", str(score.questions),
                f"{audited.headline[score.rule]:.3f}" if score.level == "all" and score.rule in audited.headline else "",
            )
            for score in audited.rules
        ],
    )  # fmt: skip
    _print(
        console,
        "Questions that give their answers away",
        ("question", "answer", "asked", "share"),
        [(text.prompt, text.answer, str(text.questions), f"{text.share:.2f}") for text in audited.texts[:TEXTS]],
    )
    _print(
        console,
        "Errors of the model",
        ("cause", "level", "errors", "rate against it", "rate along it", "explained"),
        [
            (
                e.cause,
                e.level,
                str(e.errors),
                f"{e.against:.2f}",
                f"{e.along:.2f}",
                f"{e.explained:.1f} ({e.share:.0%})",
            )
            for e in audited.explanations
        ],
    )


def _print(console: Console, title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for column in head:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)
