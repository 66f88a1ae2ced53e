"""How sure a score is: bootstrap intervals that resample whole scenes, since questions about one picture go together."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Totals = NDArray[np.float64]
Statistic = Callable[[Totals], Totals]
"""Maps summed counts of shape (..., counts) to scores of shape (...)."""

FEWEST = 10
"""Pictures below which nothing is said of how sure a score is: with fewer, resampling them is wrong too often."""

TOO_FEW = "too few pictures"

_ENTRIES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A score and the bounds it lies between with the requested confidence; nan where nothing is known of them."""

    value: float
    low: float
    high: float


def format_interval(score: Interval, clusters: int, *, signed: bool = False) -> str:
    """Write a score with its bounds, or say that there are too few pictures for any.

    Args:
        score: The score.
        clusters: Pictures behind it.
        signed: Whether to write a plus, for differences.
    """
    if math.isnan(score.value):
        return "\u2013"
    sign = "+" if signed else ""
    if clusters < FEWEST:
        return f"{score.value:{sign}.3f} ({TOO_FEW})"
    if math.isnan(score.low) or math.isnan(score.high):
        return f"{score.value:{sign}.3f}"
    low, high = _format_bounds(score, sign)
    return f"{score.value:{sign}.3f} [{low}, {high}]"


def _format_bounds(score: Interval, sign: str) -> tuple[str, str]:
    """Write bounds with three digits, and with more where those are the same: no interval is shown without a width."""
    for digits in range(3, 9):
        low, high = (f"{bound:{sign}.{digits}f}" for bound in (score.low, score.high))
        if low != high:
            break
    return low, high


def by_cluster(clusters: Sequence[str], counts: ArrayLike) -> Totals:
    """Sum rows of counts, shape (n, counts), that belong to one cluster; the result is (clusters, counts)."""
    rows = np.asarray(counts, dtype=np.float64)
    if len(rows) != len(clusters):
        raise ValueError(f"by_cluster: {len(clusters)} cluster names for {len(rows)} rows of counts.")
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    totals = np.zeros((int(place.max(initial=-1)) + 1, rows.shape[1]))
    np.add.at(totals, place, rows)
    return totals


@dataclass(frozen=True)
class Share:
    """A sum of some counts over a sum of others: the statistic of an accuracy or a rate. Nothing over nothing is nan.

    Args:
        part: Columns added up above the line.
        whole: Columns added up below it.
    """

    part: tuple[int, ...]
    whole: tuple[int, ...]

    def __call__(self, totals: Totals) -> Totals:
        """Return scores of shape (...) from totals of shape (..., counts)."""
        part, whole = (totals[..., list(columns)].sum(-1) for columns in (self.part, self.whole))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(part / whole)


share = Share((0,), (1,))
"""First count over second."""


def mean_share(totals: Totals) -> Totals:
    """Return the mean of the shares 0/1 and 2/3: balanced accuracy from (right yes, all yes, right no, all no)."""
    return (share(totals[..., 0:2]) + share(totals[..., 2:4])) / 2


def yes_no_counts(answers: Sequence[bool | None], true: Sequence[bool]) -> Totals:
    """Count yes/no answers, one row each: (right yes, all yes, right no, all no, said yes), float64 (n, 5).

    An answer that says neither (None) is wrong, and not a yes. `mean_share`, `harmonic_share`, `accuracy`, `f1` and
    `yes_ratio` read sums of such rows. Raises ValueError where the lengths differ.
    """
    rows = [(s is True and t, t, s is False and not t, not t, s is True) for s, t in zip(answers, true, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


accuracy = Share((0, 2), (1, 3))
"""Share of right answers, from `yes_no_counts`."""

yes_ratio = Share((4,), (1, 3))
"""Share of answers that say yes, from `yes_no_counts`."""


def f1(totals: Totals) -> Totals:
    """Return F1 of "yes" from `yes_no_counts`: twice the hits over said yes and true yes together.

    Nan without either.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(2 * totals[..., 0] / (totals[..., 4] + totals[..., 1]))


def harmonic_share(totals: Totals) -> Totals:
    """Return the harmonic mean of the shares 0/1 and 2/3: the index of PhD (arXiv 2403.11116) from both recalls.

    Zero where one side is never right, so an answer that is always "yes" earns nothing; nan where a side is empty.
    """
    yes, no = share(totals[..., 0:2]), share(totals[..., 2:4])
    together = np.where(yes + no == 0, 1.0, yes + no)  # nan stays nan; zero over one is the limit
    return np.asarray(2 * yes * no / together)


def interval(
    totals: Totals, statistic: Statistic = share, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the score over all scenes and its bootstrap interval; `totals` has one row per scene.

    The bounds are nan below `FEWEST` scenes.
    """
    draws = np.concatenate([statistic(weights @ totals) for weights in _weights(len(totals), resamples, seed)])
    return bounds(float(statistic(totals.sum(0))), draws, len(totals), level, is_share=isinstance(statistic, Share))


def paired_difference(
    before: Totals,
    after: Totals,
    statistic: Statistic = share,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return `after` minus `before`, where row i of both is the same scene.

    Each resample takes the same scenes for both.
    """
    draws = paired_draws(before, after, statistic, resamples=resamples, seed=seed)
    return bounds(float(statistic(after.sum(0)) - statistic(before.sum(0))), draws, len(before), level)


def paired_draws(
    before: Totals, after: Totals, statistic: Statistic = share, *, resamples: int = 1000, seed: int = 0
) -> Totals:
    """Return bootstrap draws of `after` minus `before`, shape (resamples,).

    Nan where a draw leaves the score undefined.
    """
    if before.shape != after.shape:
        raise ValueError(f"paired_difference: the shapes differ, {before.shape} and {after.shape}.")
    parts = [
        statistic(weights @ after) - statistic(weights @ before) for weights in _weights(len(before), resamples, seed)
    ]
    return np.concatenate(parts)


def bounds(value: float, draws: Totals, clusters: int, level: float, *, is_share: bool = False) -> Interval:
    """Return a score between the percentiles of its expanded draws that hold `level` of them; undefined draws are left out.

    Draws that are all the same say nothing about chance: a share of none or all then lies between the exact bounds of so many
    scenes (Clopper and Pearson, Biometrika, 1934), and anything else has no bounds.

    Args:
        value: The score.
        draws: Its bootstrap draws.
        clusters: Scenes they were drawn from; the bounds are nan below `FEWEST`.
        level: Confidence of the interval.
        is_share: Whether the score is a share of what is counted in a scene.
    """
    defined = draws[~np.isnan(draws)]
    if clusters < FEWEST or defined.size == 0:
        return Interval(value, math.nan, math.nan)
    expanded = expand(defined, value, clusters)
    low, high = np.quantile(expanded, ((1 - level) / 2, (1 + level) / 2))
    if low == high:
        return _exact_bounds(value, clusters, level) if is_share else Interval(value, math.nan, math.nan)
    if defined.min() >= 0 and defined.max() <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(value, float(low), float(high))


def expand(draws: Totals, value: float, clusters: int) -> Totals:
    """Move draws away from the score, by what percentiles of few scenes are too narrow.

    They lack the factor n / (n - 1) of a variance, and Student's distribution (Hesterberg, The American Statistician, 2015).
    """
    factor = stats.t.ppf(0.975, clusters - 1) / stats.norm.ppf(0.975) * math.sqrt(clusters / (clusters - 1))
    return np.asarray(value + factor * (draws - value))


def _exact_bounds(value: float, clusters: int, level: float) -> Interval:
    """Return the bounds of a share whose scenes were all alike; nan where they are neither all right nor all wrong."""
    furthest = ((1 - level) / 2) ** (1 / clusters)
    if value == 1:
        return Interval(value, furthest, 1.0)
    return Interval(value, 0.0, 1 - furthest) if value == 0 else Interval(value, math.nan, math.nan)


def _weights(clusters: int, resamples: int, seed: int) -> Iterator[Totals]:
    """Draw how often each scene is in each resample, in blocks of shape (some resamples, clusters)."""
    if clusters == 0:
        raise ValueError("a bootstrap needs at least one scene.")
    return (
        iter(_few_weights(clusters, resamples, seed))
        if clusters * resamples <= _ENTRIES_AT_ONCE
        else _blocks(clusters, resamples, seed)
    )


@functools.lru_cache(maxsize=4)
def _few_weights(clusters: int, resamples: int, seed: int) -> tuple[Totals, ...]:
    """Cache the draws, since every measure of a suite is resampled alike and drawing takes longer than the rest."""
    return tuple(_blocks(clusters, resamples, seed))


def _blocks(clusters: int, resamples: int, seed: int) -> Iterator[Totals]:
    rng = np.random.default_rng(seed)
    block = max(_ENTRIES_AT_ONCE // clusters, 1)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=size).astype(np.float64)
