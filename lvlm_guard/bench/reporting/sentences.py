"""The sentences of a verdict: differences with their intervals, and what else changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from lvlm_guard.bench.reporting.differences import SURE, Rival, corrected, is_better, is_worse
from lvlm_guard.bench.reporting.results import Score
from lvlm_guard.bench.scoring.intervals import format_interval
from lvlm_guard.bench.scoring.significance import Significance, find_resolution

MOST = 3
"""Other measures that a reason names."""


def summarise(score: Score, test: Significance) -> str:
    """Write a score's difference to greedy, with its interval and p value."""
    change = test.difference
    figures = format_interval(change, test.clusters, signed=True)
    return f"{score.title}: {figures}, {format_p(corrected(test))}."


def describe_resolution(score: Score, test: Significance, comparisons: int) -> str:
    """Say which differences the run was too small for; nothing where that is not known."""
    is_share = score.found.value <= 1
    least = find_resolution(test, comparisons, SURE, span=1.0 if is_share else 0.0)
    size = f"{test.n} answers about {test.clusters} pictures"
    if is_share and least >= 1:
        return f" No difference could have been seen with {size}."
    return f" Differences below about {least:.3f} could not have been seen with {size}." if least > 0 else ""


def format_p(p: float) -> str:
    """Write a p value for a sentence."""
    return "p unknown" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"  # noqa: PLR2004 - shown digits


def describe_rival(score: Score, name: str, rival: Rival) -> str:
    """Write what a control gains alone, and how far the stack is from it."""
    change = rival.test.difference
    aim = "higher" if score.higher_is_better else "lower"
    gain = rival.gain if score.higher_is_better else -rival.gain
    figures = f"{format_interval(change, rival.test.clusters, signed=True)}, {format_p(rival.test.p)}"
    return f"{name}, a control, alone changes it by {gain:+.3f}; the stack is not clearly {aim} ({figures})."


def describe_matches(score: Score, matching: Mapping[str, Rival]) -> str:
    """Describe the control that gains most of those that match a stack, and name the others."""
    names = sorted(matching, key=lambda name: -matching[name].gain)
    besides = f" So does {', '.join(names[1:])}." if len(names) > 1 else ""
    return describe_rival(score, names[0], matching[names[0]]) + besides


def describe_changes(measured: Iterable[Score]) -> str:
    """Name the other measures that changed beyond chance."""
    scores = list(measured)
    words = [("Better", filter(is_better, scores)), ("Worse", filter(is_worse, scores))]
    sentences = [(word, _join_changes([_change(score) for score in changed])) for word, changed in words]
    return "".join(f" {word} besides: {names}." for word, names in sentences if names)


def _join_changes(changes: Sequence[str]) -> str:
    more = f" and {len(changes) - MOST} more" if len(changes) > MOST else ""
    return ", ".join(changes[:MOST]) + more


def _change(score: Score) -> str:
    change = score.against_greedy.difference.value if score.against_greedy is not None else math.nan
    level = "" if score.level == "all" else f" ({score.level})"
    return f"{score.title}{level} {change:+.3f}"
