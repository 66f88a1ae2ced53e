"""Whether a difference between two ways to answer the same questions is more than chance.

Three tests, and which is used when (`significance` chooses, and says which):

- exact McNemar: a share of right answers, and every question has a picture of its own;
- exact sign flip over clusters: a share over the same questions on both sides, several of them about one picture;
- paired bootstrap over clusters: everything else, such as F1, balanced accuracy or CHAIR_i, which are no means.

Below 10 pictures none is used: there is no p value, and no interval.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lvlm_guard.bench.scoring.intervals import (
    FEWEST,
    TOO_FEW,
    Interval,
    Share,
    Statistic,
    Totals,
    bounds,
    by_cluster,
    expand,
    paired_draws,
    share,
)
from lvlm_guard.deprecation import moved_names
from lvlm_guard.errors import InputError

MCNEMAR = "exact McNemar"
SIGN_FLIP = "exact sign flip over clusters"
BOOTSTRAP = "paired bootstrap over clusters"
_Name = TypeVar("_Name", bound=Hashable)
RESAMPLES = 4000
"""Bootstrap resamples of a difference, unless another number is asked for."""


@dataclass(frozen=True)
class Significance:
    """One comparison of two ways to answer the same questions.

    Args:
        difference: Guarded minus plain, with its clustered bootstrap interval.
        p: Two-sided p value; nan where the score is undefined, and where there are too few pictures.
        n: Questions (rows of counts).
        clusters: Pictures they belong to.
        test: `MCNEMAR`, `SIGN_FLIP`, `BOOTSTRAP`, or `TOO_FEW` where none is used.
        adjusted_p: `p` after Holm's correction by `correct_p_values`; None before it.
    """

    difference: Interval
    p: float
    n: int
    clusters: int
    test: str
    adjusted_p: float | None = None


def find_resolution(test: Significance, comparisons: int = 1, sure: float = 0.05, span: float = 1.0) -> float:
    """Return about the smallest difference that a comparison could have told from chance; nan where nothing is known of chance.

    It is half the width of the interval, and no less than a difference of so few answers that even all of them on one side
    have a p value above `sure`. Both are widened for several comparisons as Holm's correction of the smallest p value does.

    Args:
        test: The comparison.
        comparisons: How many are read side by side.
        sure: Below this a p value counts.
        span: How far the best score is from the worst; 0 where that is not known, and only the interval is looked at.
    """
    widened = stats.norm.isf(sure / comparisons / 2) / stats.norm.isf(sure / 2)
    if test.test == TOO_FEW or np.isnan(test.p):
        return float("nan")
    width = test.difference.high - test.difference.low
    half = 0.0 if np.isnan(width) else width / 2 * widened
    fewest = np.ceil(np.log2(2 * comparisons / sure)) / test.n
    return float(max(half, span * min(fewest, 1.0)))


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


def count_changes(plain: Sequence[object], guarded: Sequence[object]) -> Changes:
    """Count answers (texts, or parsed values) that differ from plain's; entry i of both answers one question.

    Raises:
        InputError: No answers, or not as many of both.
    """
    if not plain or len(plain) != len(guarded):
        raise InputError(
            f"count_changes: {len(plain)} plain and {len(guarded)} guarded answers; give one of each per prompt."
        )
    return Changes(sum(before != after for before, after in zip(plain, guarded, strict=True)), len(plain))


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
    draws = paired_draws(plain, guarded, statistic, resamples=resamples, seed=seed)
    change = float(statistic(guarded.sum(0)) - statistic(plain.sum(0)))
    test, p = _choose_test(old, new, plain, guarded, statistic, draws)
    p = float("nan") if np.isnan(change) else p
    return Significance(bounds(change, draws, len(plain), level), p, len(old), len(plain), test)


def _choose_test(
    old: Totals, new: Totals, plain: Totals, guarded: Totals, statistic: Statistic, draws: Totals
) -> tuple[str, float]:
    """Choose the test that fits, and return its name and p value."""
    if len(plain) < FEWEST:
        return TOO_FEW, float("nan")
    value = float(statistic(guarded.sum(0)) - statistic(plain.sum(0)))
    expanded = expand(draws, value, len(plain))
    if not isinstance(statistic, Share) or not _same_wholes(plain, guarded, statistic):
        return BOOTSTRAP, bootstrap_p(expanded)
    part = list(statistic.part)
    change = guarded[:, part].sum(1) - plain[:, part].sum(1)
    right = old[:, part].sum(1), new[:, part].sum(1)
    if len(plain) == len(old) and all(np.isin(values, (0, 1)).all() for values in right):
        return MCNEMAR, mcnemar(*right)
    if np.array_equal(change, np.rint(change)):
        return SIGN_FLIP, sign_flip(change)
    return BOOTSTRAP, bootstrap_p(expanded)


def _same_wholes(plain: Totals, guarded: Totals, statistic: Share) -> bool:
    whole = list(statistic.whole)
    return np.array_equal(plain[:, whole].sum(1), guarded[:, whole].sum(1))


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """Return the two-sided p value of the exact McNemar test on paired right-or-wrong answers; 1 where nothing changed.

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
    gains, losses = int((new & ~old).sum()), int((old & ~new).sum())
    return float(stats.binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0


def sign_flip(differences: ArrayLike) -> float:
    """Return the two-sided p value of the exact sign-flip test over clusters; 1 where nothing changed.

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
    """Return the chances of the sums -size*count to size*count of `count` numbers plus or minus `size`."""
    chances = np.zeros(2 * size * count + 1)
    chances[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
    return chances


def bootstrap_p(draws: Totals) -> float:
    """Return the two-sided p value from draws of a difference: twice the smaller share on either side of zero, at most 1.

    It inverts the percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993): below 0.05 about
    where the 95 % interval leaves out zero. One is added to both counts, so it is never 0. Undefined draws are left out;
    nan where all are.
    """
    defined = draws[~np.isnan(draws)]
    if not defined.size:
        return float("nan")
    rarer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(2 * (rarer + 1) / (defined.size + 1), 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Apply Holm's step-down correction (Scandinavian Journal of Statistics, 1979) to p values read side by side.

    The chance of any false finding among them stays at the level, however they depend on each other. A nan stays nan
    and does not count as a comparison.

    Raises:
        InputError: A p value outside 0 to 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    defined = np.flatnonzero(~np.isnan(values))
    if ((values[defined] < 0) | (values[defined] > 1)).any():
        raise InputError(f"holm: p values must lie between 0 and 1, got {list(p_values)}.")
    order = defined[np.argsort(values[defined], kind="stable")]
    raised = values[order] * np.arange(order.size, 0, -1)
    values[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(value) for value in values]


def correct_p_values(comparisons: Mapping[_Name, Significance]) -> dict[_Name, Significance]:
    """Apply Holm's correction over all comparisons: several stacks against one plain run."""
    corrected = holm([comparison.p for comparison in comparisons.values()])
    return {
        name: replace(comparison, adjusted_p=p)
        for (name, comparison), p in zip(comparisons.items(), corrected, strict=True)
    }


__getattr__ = moved_names(
    __name__,
    {
        "adjusted": "lvlm_guard.bench.scoring.significance:correct_p_values",
        "changes": "lvlm_guard.bench.scoring.significance:count_changes",
    },
)
