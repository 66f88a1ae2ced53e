"""What a search came to, as a page of Markdown and as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_guard.bench.reporting.results import to_plain
from lvlm_guard.bench.reporting.sentences import format_p
from lvlm_guard.bench.scoring.intervals import Interval, format_interval
from lvlm_guard.tuning.beside_singles import WARNING, place
from lvlm_guard.tuning.candidates import describe_entries
from lvlm_guard.tuning.costs import AnswerCost
from lvlm_guard.tuning.judging import Finalist, Single
from lvlm_guard.tuning.objectives import Gain, Quality
from lvlm_guard.tuning.records import TrialRecord
from lvlm_guard.tuning.splits import Splits

NOTHING_BEATS = "No stack beat the controls."
MOST_TRIALS = 12
"""Trials that the page lists."""


@dataclass(frozen=True)
class SearchOutcome:
    """What a search came to.

    Args:
        model: What the model is called.
        splits: The items.
        levels: Levels that counted.
        budget: Most forward-equivalents of an answer.
        seed: Of the search.
        plain: Plain generate on the calibration items.
        records: All trials.
        front: Those that no other one beats, the cheapest first.
        finalists: Stacks that were judged on held-out items.
        singles: Each strategy alone at its published values, on held-out items; empty where that was switched off.
        left_out: Strategies that were not searched, with the reason.
        recommended: The stack that is written; None where none beat the controls.
    """

    model: str
    splits: Splits
    levels: Sequence[str]
    budget: float
    seed: int
    plain: Quality
    records: Sequence[TrialRecord]
    front: Sequence[TrialRecord]
    finalists: Sequence[Finalist]
    singles: Sequence[Single]
    left_out: Mapping[str, str]
    recommended: Finalist | None

    @property
    def compared(self) -> str:
        """The finalist that single strategies were compared with: the one that is written, else the first; empty where there is none."""
        return choose_compared(self.finalists)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "model": self.model,
            "calibration": self.splits.calibration.describe(),
            "held_out": self.splits.held_out.describe(),
            "levels": list(self.levels),
            "budget": self.budget,
            "seed": self.seed,
            "plain": to_plain(self.plain),
            "trials": to_plain(self.records),
            "front": [record.number for record in self.front],
            "finalists": [_describe_finalist(finalist) for finalist in self.finalists],
            "compared": self.compared,
            "singles": to_plain(self.singles),
            "left_out": dict(self.left_out),
            "recommended": None if self.recommended is None else self.recommended.name,
        }


def choose_compared(finalists: Sequence[Finalist]) -> str:
    """Return the name of the finalist that single strategies are compared with; empty where there is none."""
    return next((each.name for each in finalists if each.helps), finalists[0].name if finalists else "")


def _describe_finalist(finalist: Finalist) -> dict[str, Any]:
    values = to_plain(finalist)
    return {**values, "stack": finalist.stack.to_dict()["stack"], "helps": finalist.helps}


def format_page(outcome: SearchOutcome, command: str = "") -> str:
    """Return the page."""
    sections = [
        _format_head(outcome, command),
        _format_verdict(outcome),
        _format_finalists(outcome),
        _format_singles(outcome),
        _format_front(outcome),
        _format_left_out(outcome),
    ]
    return "\n".join(section for section in sections if section)


def _format_head(outcome: SearchOutcome, command: str) -> str:
    searched, judged = outcome.splits.calibration.describe(), outcome.splits.held_out.describe()
    lines = [
        f"# Stacks for {outcome.model} at {outcome.budget:g}x",
        "",
        *([f"`{command}`", ""] if command else []),
        (
            f"Searched on {searched['items']} items about {searched['pictures']} pictures of {_describe_split(searched)}; judged on "
            f"{judged['items']} items about {judged['pictures']} pictures of {_describe_split(judged)}. Levels: "
            f"{', '.join(outcome.levels)}. Seed {outcome.seed}."
        ),
        "",
        (
            "A *forward* is one of a row through the decoder; plain generate needs one for its prompt and one for each token after the "
            "first. *Gain* is the mean over levels and captions of the difference to plain generate, positive where better. Brackets "
            "are 95 % intervals, pictures resampled as wholes. The clock is that of the machine that ran it."
        ),
        "",
    ]
    return "\n".join(lines)


def _describe_split(description: Mapping[str, Any]) -> str:
    arguments = description["arguments"]
    pieces = [f"{name} {arguments[name]}" for name in ("split", "count", "seed") if arguments.get(name) is not None]
    return f"{description['suite']} ({', '.join(pieces)})" if pieces else str(description["suite"])


def _format_verdict(outcome: SearchOutcome) -> str:
    if outcome.recommended is not None:
        chosen = outcome.recommended
        helps = [verdict.level or "all levels" for verdict in chosen.verdicts if verdict.kind == "helps"]
        return (
            f"**`{chosen.name}` beats plain generate and every control on held-out items** ({', '.join(helps)}): "
            f"{describe_stack(chosen)}. It is in `stack.toml`.\n"
            + "".join(f"\n{line}\n" for line in list_standing(outcome))
        )
    if not outcome.finalists:
        return f"**{NOTHING_BEATS}** Nothing was better than plain generate on the calibration items, so nothing was judged.\n"
    return f"**{NOTHING_BEATS}** So no stack file was written: plain generate is what these figures speak for.\n"


def list_standing(outcome: SearchOutcome) -> list[str]:
    """Return how the stack that is written stands beside single strategies, a line each, warnings last."""
    if outcome.recommended is None:
        return []
    if not outcome.singles:
        return [f"{WARNING}: it was not compared with single strategies."]
    standing = place(outcome.singles)
    return [line for line in (standing.describe(), *standing.warnings) if line]


def describe_stack(finalist: Finalist) -> str:
    """Write the stack of a finalist in a few words."""
    return describe_entries(finalist.stack.to_dict()["stack"])


def _format_finalists(outcome: SearchOutcome) -> str:
    if not outcome.finalists:
        return ""
    parts = _list_parts(outcome)
    clusters = len(outcome.splits.held_out.clusters)
    rows = [
        [
            finalist.name,
            *_format_gain(finalist.gain, parts, clusters),
            *_format_cost(finalist.cost),
            finalist.fault or ("helps" if finalist.helps else "not recommended"),
        ]
        for finalist in outcome.finalists
    ]
    table = _format_table(["stack", "gain", *parts, "recall", "forwards", "prefill", "token", "clock", ""], rows)
    stacks = [f"- `{finalist.name}`: {describe_stack(finalist)}" for finalist in outcome.finalists]
    sentences = [
        f"- `{finalist.name}`, {verdict.level or 'all levels'}: **{verdict.kind}**. {verdict.why}"
        for finalist in outcome.finalists
        for verdict in finalist.verdicts
    ]
    return "\n".join(
        [
            "## On held-out items",
            "",
            *stacks,
            "",
            table,
            "",
            "Verdicts, with every control in the run:",
            "",
            *sentences,
            "",
        ]
    )


def _format_singles(outcome: SearchOutcome) -> str:
    """Return the tuned stack beside every strategy alone."""
    if not outcome.singles:
        return ""
    parts, clusters = _list_parts(outcome), len(outcome.splits.held_out.clusters)
    leads = [
        f"{outcome.compared} minus it, {part}"
        for part in parts
        if any(part in single.leads for single in outcome.singles)
    ]
    rows = [
        [
            single.name,
            *_format_gain(single.gain, parts, clusters),
            *_format_cost(single.cost),
            *(_format_leads(single, parts) or [""] * len(leads)),
            single.fault,
        ]
        for single in outcome.singles
        if not single.refusal
    ]
    table = _format_table(
        ["strategy", "gain", *parts, "recall", "forwards", "prefill", "token", "clock", *leads, ""], rows
    )
    refusals = [f"- `{single.name}` was not judged: {single.refusal}" for single in outcome.singles if single.refusal]
    words = f"The same held-out items. The last column says what is no choice at {outcome.budget:g}x."
    if leads:
        words += " For what captions invent, less is better. P values are Holm's over strategies and parts."
    return "\n".join(["## Each strategy alone at its published values", "", words, "", table, "", *refusals, ""])


def _format_leads(single: Single, parts: Sequence[str]) -> list[str]:
    return [
        f"{format_interval(test.difference, test.clusters, signed=True)}, {format_p(test.adjusted_p or 0.0)}"
        for part in parts
        if (test := single.leads.get(part)) is not None
    ]


def _format_front(outcome: SearchOutcome) -> str:
    """Return the front, and how all trials ended."""
    parts = list(outcome.plain.parts)
    numbers = {record.number for record in outcome.front}
    runners_up = sorted(
        (record for record in outcome.records if record.is_finished and record.number not in numbers),
        key=lambda record: -record.gain,
    )
    rows = [_format_trial(record, parts, is_front=True) for record in outcome.front]
    rows += [_format_trial(record, parts, is_front=False) for record in runners_up[: max(MOST_TRIALS - len(rows), 0)]]
    counts = Counter(record.state for record in outcome.records)
    ends = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    plain = ", ".join(f"{name} {value:.3f}" for name, value in outcome.plain.parts.items())
    recall = "" if outcome.plain.recall is None else f", recall {outcome.plain.recall:.3f}"
    return "\n".join(
        [
            "## On calibration items",
            "",
            "![Gain against cost: the front, the other trials and the budget](front.svg)",
            "",
            (
                f"{len(outcome.records)} trials: {ends}. Plain generate scores {plain}{recall}. The front is marked; gains are optimistic, "
                "since the best of many was taken."
            ),
            "",
            _format_table(["trial", "stack", "gain", *parts, "forwards", "clock", "front"], rows),
            "",
        ]
    )


def _format_trial(record: TrialRecord, parts: Sequence[str], *, is_front: bool) -> list[str]:
    gains = [f"{record.gains[part][0]:+.3f}" if part in record.gains else "" for part in parts]
    return [
        str(record.number),
        describe_entries(record.entries),
        f"{record.gain:+.4f}",
        *gains,
        f"{record.cost['answer']:.2f}",
        f"{record.cost['clock']:.2f}",
        "yes" if is_front else "",
    ]


def _format_left_out(outcome: SearchOutcome) -> str:
    refusals = [
        f"- {describe_entries(record.entries)}: {record.reason}"
        for record in outcome.records
        if record.state == "refused"
    ]
    reasons = [f"- `{name}`: {reason}" for name, reason in outcome.left_out.items()]
    lines = ["## Left out", "", *reasons, *refusals, ""] if reasons or refusals else []
    return "\n".join(lines)


def _list_parts(outcome: SearchOutcome) -> list[str]:
    return list(outcome.plain.parts)


def _format_gain(gain: Gain | None, parts: Sequence[str], clusters: int) -> list[str]:
    if gain is None:
        return ["", *("" for _ in parts), ""]
    cells = [_format_part(gain.parts.get(part), clusters) for part in parts]
    return [f"{gain.value:+.4f}", *cells, "" if gain.recall is None else f"{gain.recall:+.3f}"]


def _format_part(interval: Interval | None, clusters: int) -> str:
    return "" if interval is None else format_interval(interval, clusters, signed=True)


def _format_cost(cost: AnswerCost | None) -> list[str]:
    if cost is None:
        return ["", "", "", ""]
    return [f"{value:.2f}" for value in (cost.answer, cost.prefill, cost.decode, cost.clock)]


def _format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
