"""How sure a score is: bootstrap intervals that resample whole scenes, since questions about one picture go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Totals = NDArray[np.float64]
Statistic = Callable[[Totals], Totals]
"""Maps summed counts of shape (..., counts) to scores of shape (...)."""


@dataclass(frozen=True)
class Interval:
    """A score and the bounds it lies between with the confidence asked for."""

    value: float
    low: float
    high: float


def by_cluster(clusters: Sequence[str], counts: ArrayLike) -> Totals:
    """Sums rows of counts, shape (n, counts), that belong to one cluster; the result is (clusters, counts)."""
    rows = np.asarray(counts, dtype=np.float64)
    if len(rows) != len(clusters):
        raise ValueError(f"by_cluster: {len(clusters)} cluster names for {len(rows)} rows of counts.")
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    totals = np.zeros((int(place.max(initial=-1)) + 1, rows.shape[1]))
    np.add.at(totals, place, rows)
    return totals


def share(totals: Totals) -> Totals:
    """First count over second: the statistic of an accuracy or a rate. Nothing over nothing is nan."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(totals[..., 0] / totals[..., 1])


def mean_share(totals: Totals) -> Totals:
    """Mean of the shares 0/1 and 2/3: balanced accuracy from (right yes, all yes, right no, all no)."""
    return (share(totals[..., 0:2]) + share(totals[..., 2:4])) / 2


def interval(
    totals: Totals, statistic: Statistic = share, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The score over all scenes and its bootstrap interval; `totals` has one row per scene."""
    drawn = statistic(_weights(len(totals), resamples, seed) @ totals)
    return _bounds(float(statistic(totals.sum(0))), drawn, level)


def paired_difference(
    before: Totals,
    after: Totals,
    statistic: Statistic = share,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`after` minus `before` where row i of both is the same scene; each resample takes the same scenes for both."""
    if before.shape != after.shape:
        raise ValueError(f"paired_difference: the shapes differ, {before.shape} and {after.shape}.")
    weights = _weights(len(before), resamples, seed)
    drawn = statistic(weights @ after) - statistic(weights @ before)
    return _bounds(float(statistic(after.sum(0)) - statistic(before.sum(0))), drawn, level)


def _weights(clusters: int, resamples: int, seed: int) -> Totals:
    """How often each scene is in each resample, shape (resamples, clusters)."""
    if clusters == 0:
        raise ValueError("a bootstrap needs at least one scene.")
    rng = np.random.default_rng(seed)
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).astype(np.float64)


def _bounds(value: float, drawn: Totals, level: float) -> Interval:
    known = drawn[~np.isnan(drawn)]
    if known.size == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, ((1 - level) / 2, (1 + level) / 2))
    return Interval(value, float(low), float(high))
