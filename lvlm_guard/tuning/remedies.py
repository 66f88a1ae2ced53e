"""Remedies for wrong answers: how often each strategy turns a wrong answer round, measured, never looked up.

What cures depends on the model, on the level of a question and on how sure the model was of its wrong answer. So a table holds, for
calibration items, what each remedy made of each answer, right ones included, and a constant push towards yes or no
beside them, which is no remedy: it shows how much is only leaning.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lvlm_guard.bench import files
from lvlm_guard.bench.items import AnsweredItem
from lvlm_guard.bench.running.choosing import build_suite, load_measures
from lvlm_guard.bench.running.manifest import model_identity
from lvlm_guard.bench.running.runner import one_thread_if_small
from lvlm_guard.bench.running.store import Record
from lvlm_guard.bench.running.systems import GREEDY
from lvlm_guard.bench.scoring.fitted_bias import apply_fitted_bias
from lvlm_guard.bench.scoring.intervals import FEWEST
from lvlm_guard.bench.scoring.measures import Measure
from lvlm_guard.bench.scoring.rightness import find_margin, is_right
from lvlm_guard.errors import InputError, Refused, quote
from lvlm_guard.host.stack import Stack
from lvlm_guard.tuning.answering import AnswerCache, TunedModel
from lvlm_guard.tuning.splits import Split

FITTED_BIAS = "bias"
"""The push towards yes or no that is fitted on the other pictures: the control of the table."""

BINS = 3
"""Bins of the margin, with as many wrong answers each."""

NO_MARGIN = "none"
"""The bin of answers without a margin between yes and no."""

SMOOTHING = 4.0
"""Wrong answers that a remedy's rate over all levels and margins stands for in one cell."""

FORMAT = 1


@dataclass(frozen=True)
class CaseRow:
    """One calibration item.

    Args:
        id: Of the item.
        cluster: Its picture, or the group of pictures that go together.
        prompt: The question.
        level: Its level.
        kind: The suite's own category.
        margin: How sure plain generate was; None where it has no margin.
        plain: Its answer.
        right: Whether that is right.
        answers: What each remedy made of it: the text, and whether it is right.
    """

    id: str
    cluster: str
    prompt: str
    level: str
    kind: str
    margin: float | None
    plain: str
    right: bool
    answers: Mapping[str, tuple[str, bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class CureRate:
    """What a remedy did to the answers of one cell.

    Args:
        wrong: Wrong answers.
        cured: Those that it made right.
        right: Right answers.
        broken: Those that it made wrong.
        rate: Share cured, drawn towards the remedy's share over all cells where there are few.
    """

    wrong: int
    cured: int
    right: int
    broken: int
    rate: float


@dataclass(frozen=True)
class RemedyProposal:
    """A remedy to be tried.

    Args:
        name: The remedy.
        entries: Its stack.
        cures: What it did to answers of the same level and bin.
        control: What the fitted push towards yes or no did to them.
    """

    name: str
    entries: Sequence[Mapping[str, Any]]
    cures: CureRate
    control: CureRate

    @property
    def beats_control(self) -> bool:
        """Whether it cured more than leaning to one answer did."""
        return self.cures.rate > self.control.rate


@dataclass(frozen=True)
class RemedyTable:
    """What remedies did to calibration items of one model.

    Args:
        model: The model's name and digests.
        suite: The suite, its arguments, and how much of it there is.
        remedies: Stacks by name.
        rows: Items.
        refusals: Remedies that refused, with the reason.
    """

    model: Mapping[str, Any]
    suite: Mapping[str, Any]
    remedies: Mapping[str, Sequence[Mapping[str, Any]]]
    rows: Sequence[CaseRow]
    refusals: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def edges(self) -> tuple[float, ...]:
        """Where the bins of the margin meet: as many wrong answers in each."""
        margins = [row.margin for row in self.rows if not row.right and row.margin is not None]
        shares = [number / BINS for number in range(1, BINS)]
        return tuple(float(edge) for edge in np.quantile(margins, shares)) if margins else ()

    def find_bin(self, margin: float | None) -> str:
        """Name the bin of a margin: `0` holds the least sure answers."""
        return NO_MARGIN if margin is None else str(int(np.searchsorted(self.edges, margin, side="right")))

    def cell(self, level: str, bin_name: str) -> list[CaseRow]:
        """Return the items of one level and bin."""
        return self._cells.get((level, bin_name), [])

    @functools.cached_property
    def _cells(self) -> dict[tuple[str, str], list[CaseRow]]:
        cells: dict[tuple[str, str], list[CaseRow]] = {}
        for row in self.rows:
            cells.setdefault((row.level, self.find_bin(row.margin)), []).append(row)
        return cells

    @functools.cached_property
    def _shares(self) -> dict[str, float]:
        """The share of all wrong answers that each remedy cured."""
        counts = {name: _count(name, self.rows) for name in (*self.remedies, FITTED_BIAS)}
        return {name: count.cured / count.wrong if count.wrong else 0.0 for name, count in counts.items()}

    def measure(self, name: str, rows: Iterable[CaseRow]) -> CureRate:
        """Return what a remedy, or the control, did to some items."""
        counts = _count(name, rows)
        share = self._shares[name]
        return CureRate(
            counts.wrong,
            counts.cured,
            counts.right,
            counts.broken,
            (counts.cured + SMOOTHING * share) / (counts.wrong + SMOOTHING),
        )

    def propose(self, level: str, margin: float | None, count: int = 3) -> list[RemedyProposal]:
        """Return the remedies that cured most answers of a level and of about this margin, the best first.

        Args:
            level: The level of the question.
            margin: How sure the model is of its answer: the size of its margin between yes and no; None without one.
            count: Most remedies.

        Raises:
            InputError: The table has no item of that level.
        """
        measured_levels = {measured for measured, _ in self._cells}
        if level not in measured_levels:
            levels = ", ".join(sorted(measured_levels))
            raise InputError(f"The remedies were measured at {levels}, not at {quote(level)}. Name one of those.")
        rows = self.cell(level, self.find_bin(margin))
        control = self.measure(FITTED_BIAS, rows)
        proposals = [
            RemedyProposal(name, entries, self.measure(name, rows), control) for name, entries in self.remedies.items()
        ]
        return sorted(proposals, key=lambda proposal: (-proposal.cures.rate, proposal.cures.broken, proposal.name))[
            :count
        ]

    def find_neighbours(self, level: str, margin: float | None, count: int) -> list[CaseRow]:
        """Return the items of a level whose margins are nearest, the nearest first."""
        same = [row for row in self.rows if row.level == level and (row.margin is None) == (margin is None)]
        return sorted(same, key=lambda row: (abs((row.margin or 0.0) - (margin or 0.0)), row.id))[:count]

    def save(self, path: Path) -> None:
        """Write the table as JSON, whole or not at all.

        Raises:
            InputError: It could not be written.
        """
        values = {
            "format": FORMAT,
            "model": dict(self.model),
            "suite": dict(self.suite),
            "remedies": {name: list(entries) for name, entries in self.remedies.items()},
            "refusals": dict(self.refusals),
            "rows": [
                {**vars(row), "answers": {name: list(pair) for name, pair in row.answers.items()}} for row in self.rows
            ],
        }
        text = json.dumps(values, ensure_ascii=False, indent=1, default=str) + "\n"
        files.write_whole(path, text.encode("utf-8", "backslashreplace"))

    @classmethod
    def read(cls, path: Path, model: Any = None) -> RemedyTable:
        """Read a table.

        Args:
            path: The file.
            model: The model that it must be of; None accepts any.

        Raises:
            InputError: There is no such file, it holds no table, or one of another model.
        """
        try:
            values = json.loads(files.read_if_there(path))
            rows = [
                CaseRow(**{**row, "answers": {name: tuple(pair) for name, pair in row["answers"].items()}})
                for row in values["rows"]
            ]
            table = cls(values["model"], values["suite"], values["remedies"], rows, values["refusals"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} holds no table of remedies: make one by lvlm-guard remedies measure.") from error
        if model is not None:
            table.check_model(model)
        return table

    def check_model(self, model: Any) -> None:
        """Refuse a model that the table is not of.

        Raises:
            InputError: Its config or its weights are others.
        """
        identity = model_identity(model)
        differing = [name for name in ("class", "config", "weights") if identity[name] != self.model.get(name)]
        if differing:
            raise InputError(
                f"The remedies were measured on another model ({self.model.get('id')}): its {differing[0]} differs. Measure them "
                "on this one: lvlm-guard remedies measure."
            )


def _count(name: str, rows: Iterable[CaseRow]) -> CureRate:
    answered = [(row.right, row.answers[name][1]) for row in rows if name in row.answers]
    wrong = [after for before, after in answered if not before]
    right = [after for before, after in answered if before]
    return CureRate(len(wrong), sum(wrong), len(right), sum(not after for after in right), 0.0)


def measure(
    subject: TunedModel,
    split: Split,
    remedies: Mapping[str, Stack],
    folder: Path,
    *,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> RemedyTable:
    """Let every remedy answer calibration items, and keep what became of each.

    Args:
        subject: The model, and how it is run.
        split: The calibration items.
        remedies: Stacks by name.
        folder: Where answers are kept, so that the same call goes on where it was stopped.
        track: Shows how far it is.

    Raises:
        InputError: Too few pictures, no remedy, or one that is called like the control.
        Refused: Plain generate cannot answer the items.
    """
    _check(split, remedies)
    cache = AnswerCache(folder, subject)
    measures = load_measures(split.choice.suite, split.choice.parser, subject.data)
    with one_thread_if_small(subject.model):
        plain = cache.answer(Stack(), split, "all")
        if plain.refusal:
            raise Refused(f"Plain generate cannot answer the calibration items: {plain.refusal}")
        replies = {name: cache.answer(remedies[name], split, "all") for name in track(list(remedies))}
    pushed, _ = apply_fitted_bias(plain.answers)
    texts = {name: reply.answers for name, reply in replies.items() if not reply.refusal}
    return RemedyTable(
        {"id": subject.name, **model_identity(subject.model)},
        split.describe(),
        {name: remedies[name].to_dict()["stack"] for name in texts},
        build_rows(plain.answers, {**texts, FITTED_BIAS: pushed}, measures),
        {name: reply.refusal for name, reply in replies.items() if reply.refusal},
    )


def read_run(record: Record, suite: str, clusters: Collection[str]) -> RemedyTable:
    """Return what the stacks of a bench run did to its items about some pictures; nothing is generated.

    Args:
        record: The run, with plain generate among its systems.
        suite: The suite's name in the run.
        clusters: Pictures, or groups of them that go together.

    Raises:
        InputError: Plain generate has not answered everything.
    """
    answers = {
        name: [answer for answer in record.read_answers(name, suite) if answer.item.cluster in clusters]
        for name in record.systems
    }
    description = record.manifest["suites"][suite]
    items = [item for item in record.items[suite] if item.cluster in clusters]
    if GREEDY not in answers or len(answers[GREEDY]) < len(items):
        raise InputError(f"{record.folder}: plain generate has not answered all of {suite}. Go on with that run first.")
    stacks = {
        name: entry["stack"]
        for name, entry in record.manifest["systems"].items()
        if entry["role"] == "stack" and len(answers[name]) == len(items)
    }
    plain = answers[GREEDY]
    pushed, _ = apply_fitted_bias(plain)
    built = build_suite(description["name"], description["arguments"])
    return RemedyTable(
        record.manifest["model"],
        {
            "suite": description["name"],
            "arguments": description["arguments"],
            "items": len(items),
            "pictures": len(clusters),
        },
        stacks,
        build_rows(
            plain,
            {**{name: answers[name] for name in stacks}, FITTED_BIAS: pushed},
            load_measures(built, description["parser"], record.data),
        ),
    )


def _check(split: Split, remedies: Mapping[str, Stack]) -> None:
    if len(split.clusters) < FEWEST:
        raise InputError(
            f"{split.choice.suite.name} has {len(split.clusters)} calibration pictures; take at least {FEWEST}."
        )
    if not remedies or FITTED_BIAS in remedies:
        raise InputError(f"Name at least one remedy, and none {FITTED_BIAS!r}, which is what the control is called.")


def build_rows(
    plain: Sequence[AnsweredItem], answers: Mapping[str, Sequence[AnsweredItem]], measures: Sequence[Measure]
) -> list[CaseRow]:
    """Return a row for each item whose answers can be judged alone.

    Args:
        plain: Plain generate's answers.
        answers: Those of remedies and of the control, by name.
        measures: The suite's.
    """
    by_name = {name: {answer.item.id: answer for answer in replies} for name, replies in answers.items()}
    rows = []
    for answer in plain:
        right = is_right(answer, measures)
        if right is None:
            continue
        after = {
            name: (replies[answer.item.id].text, bool(is_right(replies[answer.item.id], measures)))
            for name, replies in by_name.items()
            if answer.item.id in replies
        }
        item = answer.item
        rows.append(
            CaseRow(
                item.id,
                item.cluster,
                item.prompt,
                item.level,
                item.kind,
                find_margin(answer),
                answer.text,
                right,
                after,
            )
        )
    return rows
