"""Scores of yes/no answers and of captions: pure functions of the answers and the truth."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

_FIRST_WORD = re.compile(r"[a-z]+")


def parse_yes_no(text: str) -> bool | None:
    """Read an answer: True for yes, False for no, None where its first word is neither."""
    word = _FIRST_WORD.search(text.lower())
    return {"yes": True, "no": False}.get(word.group()) if word else None


def parse_word(text: str, words: Collection[str]) -> str | None:
    """Return the first word of an answer that is one of the known ones, or None."""
    return next((word for word in _FIRST_WORD.findall(text.lower()) if word in words), None)


@dataclass(frozen=True)
class YesNoScores:
    """Shares between 0 and 1. An answer that says neither yes nor no counts as wrong, and not as a yes."""

    accuracy: float
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    unparsed: int
    n: int


def yes_no_scores(answers: Sequence[bool | None], true: Sequence[bool]) -> YesNoScores:
    """Score answers against the truth; a share of nothing is 0. Raises ValueError where the lengths differ."""
    pairs = list(zip(answers, true, strict=True))
    hits = sum(bool(s) and t for s, t in pairs)
    rejections = sum(s is False and not t for s, t in pairs)
    yeses = sum(s is True for s, _ in pairs)
    positives = sum(t for _, t in pairs)
    precision, recall = _share(hits, yeses), _share(hits, positives)
    return YesNoScores(
        accuracy=_share(hits + rejections, len(pairs)),
        balanced_accuracy=(recall + _share(rejections, len(pairs) - positives)) / 2,
        precision=precision,
        recall=recall,
        f1=_share(2 * precision * recall, precision + recall),
        yes_ratio=_share(yeses, len(pairs)),
        unparsed=sum(s is None for s, _ in pairs),
        n=len(pairs),
    )


@dataclass(frozen=True)
class CaptionScores:
    """CHAIR, and what must be read beside it: how much of the truth was named, and how long the captions are.

    `chair_s` is the share of captions that name an absent object, `chair_i` the share of named objects that are absent,
    `recall` the share of present objects that are named, `length` the mean number of words.
    """

    chair_s: float
    chair_i: float
    recall: float
    length: float
    n: int


@dataclass(frozen=True)
class CaptionCounts:
    """What one caption adds to the scores."""

    named: int
    absent: int
    found: int
    present: int
    words: int


def count_caption(named: Sequence[str], present: Collection[str], words: int) -> CaptionCounts:
    """Count one caption's objects; an object named twice counts twice as named and once as found."""
    return CaptionCounts(
        named=len(named),
        absent=sum(name not in present for name in named),
        found=len(set(named) & set(present)),
        present=len(set(present)),
        words=words,
    )


def caption_scores(counts: Sequence[CaptionCounts]) -> CaptionScores:
    """Score captions together; a share of nothing is 0."""
    return CaptionScores(
        chair_s=_share(sum(count.absent > 0 for count in counts), len(counts)),
        chair_i=_share(sum(count.absent for count in counts), sum(count.named for count in counts)),
        recall=_share(sum(count.found for count in counts), sum(count.present for count in counts)),
        length=_share(sum(count.words for count in counts), len(counts)),
        n=len(counts),
    )


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Return the chance that a positive scores higher than a negative, ties counting half; nan without both kinds."""
    ranked = sorted(zip(scores, positive, strict=True))
    values = [score for score, _ in ranked]
    wins = sum(bisect_left(values, s) + bisect_right(values, s) for s, is_positive in ranked if is_positive) / 2
    positives = sum(positive)
    negatives = len(ranked) - positives
    if not positives or not negatives:
        return float("nan")
    return (wins - positives**2 / 2) / (positives * negatives)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
