"""Words of captions with their truth, and how well scores tell wrong ones from true ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.testbed.world.language import DESCRIBE
from lvlm_guard.testbed.world.scenes import Scene

Floats = NDArray[np.float64]
PROMPT, SEED = DESCRIBE[0], 7
RESAMPLES, BINS = 1000, 10
SCORES: Mapping[str, Callable[[Mapping[str, Any], Sequence[float]], float]] = {
    "doubt": lambda word, _: word["doubt"],
    "entropy": lambda word, _: word["entropy"],
    "max probability": lambda word, _: -word["max_probability"],
    "image-free log-ratio": lambda _, kept: kept[1] - kept[0],
    "image attention": lambda _, kept: -kept[2],
}
"""What each score says of a word of `doubt` and of what `TokenRecorder` kept of its token; higher is more doubtful."""


@dataclass(frozen=True)
class DescribedScene:
    """A scene, and what was said of it.

    Args:
        scene: The scene.
        text: The caption.
        words: As `doubt` leaves them in a report.
        tokens: What was kept of each token `[tokens, 3]`.
    """

    scene: Scene
    text: str
    words: Sequence[Mapping[str, Any]]
    tokens: Sequence[Sequence[float]]


@dataclass(frozen=True)
class JudgedWord:
    """A word with its truth.

    Args:
        picture: The number of its picture.
        level: `object` or `attribute`.
        is_wrong: Whether the scene contradicts it.
        scores: By name.
    """

    picture: int
    level: str
    is_wrong: bool
    scores: Mapping[str, float]


def judge(number: int, described: DescribedScene) -> Iterator[JudgedWord]:
    """Yield the words of a caption that the scene says true or false of."""
    for word in described.words:
        subject = (word["claim"] or [""])[0]
        if word["level"] == "object":
            is_wrong = word["text"] not in described.scene.present
        elif word["level"] == "attribute" and (thing := described.scene.find(subject)) is not None:
            is_wrong = thing.colour != word["text"]
        else:
            continue
        scores = {name: score(word, described.tokens[word["first_token"]]) for name, score in SCORES.items()}
        yield JudgedWord(number, word["level"], is_wrong, scores)


def compute_auroc(scores: Floats, wrong: NDArray[np.bool_], weights: Floats) -> float:
    """Return the chance that a wrong word scores above a true one, ties as a half; words count by their weights."""
    order = np.argsort(scores, kind="stable")
    levels, lies = scores[order], wrong[order]
    low, high = weights[order] * ~lies, weights[order] * lies
    _, starts = np.unique(levels, return_index=True)
    below_sums, high_sums = np.add.reduceat(low, starts), np.add.reduceat(high, starts)
    below = np.cumsum(below_sums) - below_sums / 2
    total = low.sum() * high.sum()
    return float((high_sums * below).sum() / total) if total else float("nan")


def resample(words: Sequence[JudgedWord]) -> dict[str, Floats]:
    """Return AUROCs by score: of all words first, then of each resample of pictures."""
    wrong = np.array([word.is_wrong for word in words])
    _, picture = np.unique([word.picture for word in words], return_inverse=True)
    rng = np.random.default_rng(SEED)
    count = int(picture.max()) + 1
    draws = [np.ones(count), *(np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))]
    values = {name: np.array([word.scores[name] for word in words]) for name in SCORES}
    return {
        name: np.array([compute_auroc(score, wrong, weights[picture].astype(float)) for weights in draws])
        for name, score in values.items()
    }


def bound(values: Floats) -> dict[str, float]:
    """Return the first value, and the bounds of 95 % of the others."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def compare(words: Sequence[JudgedWord], group: str) -> list[dict[str, Any]]:
    """Return a row for each score: its AUROC, and how far the default doubt lies above it."""
    if len({word.is_wrong for word in words}) < 2:
        return []
    aurocs = resample(words)
    about = {
        "words of": group,
        "words": len(words),
        "wrong": sum(word.is_wrong for word in words),
        "pictures": len({word.picture for word in words}),
    }
    return [
        {
            **about,
            "score": name,
            **{f"auroc {key}": value for key, value in bound(values).items()},
            **{f"doubt minus it {key}": value for key, value in bound(aurocs["doubt"] - values).items()},
        }
        for name, values in aurocs.items()
    ]


def check_reliability(words: Sequence[JudgedWord]) -> tuple[list[dict[str, Any]], float]:
    """Return by bins of doubt the mean doubt and the share of wrong words, and their mean distance over words."""
    doubts = np.array([word.scores["doubt"] for word in words])
    wrong = np.array([word.is_wrong for word in words], dtype=float)
    places = np.minimum((doubts * BINS).astype(int), BINS - 1)
    rows = [
        {
            "doubt from": number / BINS,
            "to": (number + 1) / BINS,
            "words": int((places == number).sum()),
            "mean doubt": float(doubts[places == number].mean()),
            "share wrong": float(wrong[places == number].mean()),
        }
        for number in range(BINS)
        if (places == number).any()
    ]
    error = sum(row["words"] * abs(row["mean doubt"] - row["share wrong"]) for row in rows) / len(words)
    return rows, float(error)
