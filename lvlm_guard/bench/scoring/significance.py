"""Whether a difference between two ways to answer the same questions is more than chance.

Three tests, and which is used when (`significance` chooses, and says which):

- exact McNemar: a share of right answers, and every question has a picture of its own;
- exact sign flip over clusters: a share over the same questions on both sides, several of them about one picture;
- paired bootstrap over clusters: everything else, such as F1, balanced accuracy or CHAIR_i, which are no means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lvlm_guard.bench.scoring.intervals import (
    Interval,
    Share,
    Statistic,
    Totals,
    bounds,
    by_cluster,
    paired_draws,
    share,
)
from lvlm_guard.errors import InputError

MCNEMAR = "exact McNemar"
SIGN_FLIP = "exact sign flip over clusters"
BOOTSTRAP = "paired bootstrap over clusters"
RESAMPLES = 4000
"""Bootstrap resamples of a difference, unless another number is asked for."""


@dataclass(frozen=True)
class Significance:
    """One comparison of two ways to answer the same questions.

    Args:
        difference: Guarded minus plain, with its clustered bootstrap interval.
        p: Two-sided p value; nan where the score is undefined.
        n: Questions (rows of counts).
        clusters: Pictures they belong to.
        test: `MCNEMAR`, `SIGN_FLIP` or `BOOTSTRAP`.
        adjusted_p: `p` after Holm's correction by `adjusted`; None before it.
    """

    difference: Interval
    p: float
    n: int
    clusters: int
    test: str
    adjusted_p: float | None = None


@dataclass(frozen=True)
class Changes:
    """How many answers differ from plain's.

    Args:
        different: Answers that differ.
        n: Answers compared, at least 1.
    """

    different: int
    n: int

    @property
    def share(self) -> float:
        """Share of the answers that differ, 0 to 1."""
        return self.different / self.n

    @property
    def is_none(self) -> bool:
        """Whether nothing changed: every score is plain's, and a p value of it means nothing."""
        return self.different == 0

    @property
    def verdict(self) -> str:
        """The finding in words."""
        return "changed nothing" if self.is_none else f"changed {self.different} of {self.n} answers"


def changes(plain: Sequence[object], guarded: Sequence[object]) -> Changes:
    """Count answers (texts, or parsed values) that differ from plain's; entry i of both answers one question.

    Raises:
        InputError: No answers, or not as many of both.
    """
    if not plain or len(plain) != len(guarded):
        raise InputError(
            f"changes: {len(plain)} plain and {len(guarded)} guarded answers; give one of each per prompt."
        )
    return Changes(sum(one != other for one, other in zip(plain, guarded, strict=True)), len(plain))


def significance(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Sequence[str],
    statistic: Statistic = share,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Significance:
    """Compare two ways to answer the same questions.

    Args:
        before: Counts of the plain answers, shape (n, counts), one row per question.
        after: Counts of the guarded answers; row i answers the same question.
        clusters: The picture that each question is about.
        statistic: Maps summed counts to the score.
        resamples: Bootstrap resamples; they limit the p value of the bootstrap to 2 / (resamples + 1) from below.
        level: Confidence of the interval.
        seed: Seed of the resamples.

    Raises:
        InputError: Nothing to compare, or arguments of different lengths.
    """
    old, new = (np.asarray(counts, dtype=np.float64) for counts in (before, after))
    if old.ndim != 2 or old.shape != new.shape or not 0 < len(old) == len(clusters):  # noqa: PLR2004 - rows of counts
        raise InputError(
            f"significance: counts of shape {old.shape} and {new.shape} for {len(clusters)} clusters; "
            "give (n, counts) twice and n names, n at least 1."
        )
    plain, guarded = by_cluster(clusters, old), by_cluster(clusters, new)
    drawn = paired_draws(plain, guarded, statistic, resamples=resamples, seed=seed)
    change = float(statistic(guarded.sum(0)) - statistic(plain.sum(0)))
    test, p = _tested(old, new, plain, guarded, statistic, drawn)
    p = float("nan") if np.isnan(change) else p
    return Significance(bounds(change, drawn, level), p, len(old), len(plain), test)


def _tested(
    old: Totals, new: Totals, plain: Totals, guarded: Totals, statistic: Statistic, drawn: Totals
) -> tuple[str, float]:
    """The test that fits, and its p value."""
    if not isinstance(statistic, Share) or not _same_wholes(plain, guarded, statistic):
        return BOOTSTRAP, bootstrap_p(drawn)
    part = list(statistic.part)
    change = guarded[:, part].sum(1) - plain[:, part].sum(1)
    right = old[:, part].sum(1), new[:, part].sum(1)
    if len(plain) == len(old) and all(np.isin(values, (0, 1)).all() for values in right):
        return MCNEMAR, mcnemar(*right)
    if np.array_equal(change, np.rint(change)):
        return SIGN_FLIP, sign_flip(change)
    return BOOTSTRAP, bootstrap_p(drawn)


def _same_wholes(plain: Totals, guarded: Totals, statistic: Share) -> bool:
    whole = list(statistic.whole)
    return np.array_equal(plain[:, whole].sum(1), guarded[:, whole].sum(1))


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """Two-sided p value of the exact McNemar test on paired right-or-wrong answers; 1 where nothing changed.

    Of the answers that changed, as many should turn right as turn wrong: a binomial test with one half. It takes every
    question for a draw of its own; where several are about one picture it finds too much, and `sign_flip` is right.

    Args:
        before: Whether each plain answer is right, shape (n,).
        after: Whether each guarded answer is right, shape (n,).

    Raises:
        InputError: The shapes differ.
    """
    old, new = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if old.shape != new.shape:
        raise InputError(f"mcnemar: the shapes differ, {old.shape} and {new.shape}; answer i of both is one question.")
    gained, lost = int((new & ~old).sum()), int((old & ~new).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sign_flip(differences: ArrayLike) -> float:
    """Two-sided p value of the exact sign-flip test over clusters; 1 where nothing changed.

    If guarded and plain answers to the questions about one picture are exchangeable, taken together, each cluster's
    difference is as likely with the other sign. The p value is the share of all 2^clusters sign patterns whose sum is at
    least as far from zero as the observed one, counted exactly by convolution. With one question per cluster it is
    exact McNemar.

    Args:
        differences: Right answers after minus before, one whole number per cluster.

    Raises:
        InputError: A difference is no whole number.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not np.array_equal(values, np.rint(values)):
        raise InputError("sign_flip: differences must be whole numbers: count right answers, do not average them.")
    sizes, counts = np.unique(np.abs(values[values != 0]).astype(np.int64), return_counts=True)
    chances = np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        chances = np.convolve(chances, _signed_sums(int(size), int(count)))
    sums = np.arange(chances.size) - chances.size // 2
    return min(float(chances[np.abs(sums) >= abs(values.sum())].sum()), 1.0)


def _signed_sums(size: int, count: int) -> NDArray[np.float64]:
    """Chances of the sums -size*count to size*count of `count` numbers plus or minus `size`."""
    chances = np.zeros(2 * size * count + 1)
    chances[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
    return chances


def bootstrap_p(drawn: Totals) -> float:
    """Two-sided p value from draws of a difference: twice the smaller share on either side of zero, at most 1.

    It inverts the percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993): below 0.05 about
    where the 95 % interval leaves out zero. One is added to both counts, so it is never 0. Undefined draws are left out;
    nan where all are.
    """
    known = drawn[~np.isnan(drawn)]
    if not known.size:
        return float("nan")
    rarer = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(2 * (rarer + 1) / (known.size + 1), 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics, 1979): p values that may be read side by side.

    The chance of any false finding among them stays at the level, however they depend on each other. A nan stays nan
    and does not count as a comparison.

    Raises:
        InputError: A p value outside 0 to 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(values))
    if ((values[known] < 0) | (values[known] > 1)).any():
        raise InputError(f"holm: p values must lie between 0 and 1, got {list(p_values)}.")
    order = known[np.argsort(values[known], kind="stable")]
    raised = values[order] * np.arange(order.size, 0, -1)
    values[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(value) for value in values]


def adjusted(comparisons: Mapping[str, Significance]) -> dict[str, Significance]:
    """The same comparisons with Holm's correction over all of them: several stacks against one plain run."""
    corrected = holm([one.p for one in comparisons.values()])
    return {name: replace(one, adjusted_p=p) for (name, one), p in zip(comparisons.items(), corrected, strict=True)}
