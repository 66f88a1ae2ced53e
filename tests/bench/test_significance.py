"""Tests of significance against cases worked out by hand and against enumeration."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from scipy import stats

from lvlm_guard.bench.scoring.intervals import (
    FEWEST,
    TOO_FEW,
    accuracy,
    by_cluster,
    f1,
    format_interval,
    harmonic_share,
    interval,
    mean_share,
    paired_difference,
    share,
    yes_no_counts,
    yes_ratio,
)
from lvlm_guard.bench.scoring.scores import yes_no_scores
from lvlm_guard.bench.scoring.significance import (
    BOOTSTRAP,
    MCNEMAR,
    SIGN_FLIP,
    bootstrap_p,
    correct_p_values,
    count_changes,
    find_resolution,
    holm,
    mcnemar,
    sign_flip,
    significance,
)
from lvlm_guard.errors import InputError

SAID = [True, True, False, True, False, False, False, None]
TRUE = [True] * 3 + [False] * 5


def answers(gained: int, lost: int, kept: int = 10) -> tuple[list[bool], list[bool]]:
    """Right-or-wrong answers before and after of which so many turn right, turn wrong and stay."""
    return [False] * gained + [True] * lost + [True] * kept, [True] * gained + [False] * lost + [True] * kept


def counted(right) -> np.ndarray:
    """Rows (right, 1)."""
    values = np.asarray(right, dtype=float)
    return np.stack([values, np.ones(len(values))], axis=1)


def by_hand(gained: int, lost: int) -> float:
    """Twice the smaller binomial tail at one half, at most 1."""
    changed = gained + lost
    tail = sum(comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    return min(2 * tail, 1.0)


@pytest.mark.parametrize(("gained", "lost"), [(1, 0), (5, 1), (1, 5), (9, 2), (7, 7), (40, 18)])
def test_mcnemar_is_the_binomial_test_of_the_answers_that_changed(gained, lost):
    assert mcnemar(*answers(gained, lost)) == pytest.approx(by_hand(gained, lost), rel=1e-12)
    assert mcnemar(*answers(gained, lost, kept=500)) == mcnemar(*answers(gained, lost))


def test_mcnemar_of_a_case_worked_out_by_hand():
    # 9 gained, 2 lost: 2 * (1 + 11 + 55) / 2048
    assert mcnemar(*answers(9, 2)) == pytest.approx(134 / 2048)
    assert mcnemar(*answers(0, 0)) == 1.0


def test_a_sign_flip_with_one_question_per_cluster_is_mcnemar():
    for gained, lost in itertools.product(range(12), range(9)):
        before, after = answers(gained, lost)
        flipped = sign_flip(np.asarray(after, dtype=int) - np.asarray(before, dtype=int))
        assert flipped == pytest.approx(mcnemar(before, after), rel=1e-9)


def test_a_sign_flip_equals_the_enumeration_of_all_sign_patterns():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.integers(-4, 5, size=10)
        sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=10)]
        assert sign_flip(values) == pytest.approx(np.mean(np.asarray(sums) >= abs(values.sum())), rel=1e-9)


def test_a_sign_flip_of_many_clusters_approaches_the_normal_distribution():
    values = np.random.default_rng(1).integers(-3, 4, size=3000) + (np.arange(3000) % 40 == 0)
    z = (abs(values.sum()) - 0.5) / np.sqrt((values**2).sum())
    assert sign_flip(values) == pytest.approx(2 * stats.norm.sf(z), rel=0.01)


def test_answers_that_turn_together_are_one_finding_and_not_six():
    before, after = answers(6, 0, kept=60)
    clusters = ["a"] * 6 + [str(index) for index in range(60)]
    together = significance(counted(before), counted(after), clusters)
    alone = significance(counted(before), counted(after), [str(index) for index in range(66)])
    assert (together.test, together.p) == (SIGN_FLIP, 1.0)
    assert (alone.test, alone.p) == (MCNEMAR, pytest.approx(2 / 64))
    assert (together.n, together.clusters) == (66, 61)
    assert together.difference.value == alone.difference.value == pytest.approx(6 / 66)


def test_a_comparison_says_which_test_it_took():
    plain, guarded = yes_no_counts(SAID * 3, TRUE * 3), yes_no_counts(TRUE * 3, TRUE * 3)
    pairs, singles = [str(index // 2) for index in range(24)], [str(index) for index in range(24)]
    for statistic, clusters, test in [
        (accuracy, singles, MCNEMAR), (yes_ratio, singles, MCNEMAR), (accuracy, pairs, SIGN_FLIP), (f1, pairs, BOOTSTRAP),
        (mean_share, singles, BOOTSTRAP), (harmonic_share, pairs, BOOTSTRAP),
    ]:  # fmt: skip
        assert significance(plain, guarded, clusters, statistic).test == test


def test_captions_that_name_another_number_of_objects_take_the_bootstrap():
    named = np.array([[1.0, 4.0], [0.0, 3.0], [2.0, 5.0]] * 4)
    pictures = list("abcdefghijkl")
    assert significance(named, named, pictures).test == SIGN_FLIP
    assert significance(named, named + np.array([0, 1]), pictures).test == BOOTSTRAP


def test_nothing_is_said_of_chance_below_ten_pictures():
    right, wrong = np.array([[1.0, 1.0]] * 40), np.array([[0.0, 1.0]] * 40)
    for pictures in (1, 4, 9, 10):
        found = significance(wrong, right, [str(index % pictures) for index in range(40)])
        told = pictures >= FEWEST
        assert found.test == (SIGN_FLIP if told else TOO_FEW)
        assert np.isnan(found.p) == np.isnan(find_resolution(found)) == (not told)
        words = format_interval(found.difference, found.clusters, signed=True)
        assert words == ("+1.000" if told else "+1.000 (too few pictures)")


@pytest.mark.parametrize(("right", "words"), [(0, "0.000 [0.000, 0.168]"), (20, "1.000 [0.832, 1.000]"), (10, "0.500")])
def test_pictures_that_are_all_alike_have_the_bounds_of_an_exact_test_or_none(right, words):
    found = interval(np.array([[float(right), 20.0]] * 20))
    assert format_interval(found, 20) == words
    low, high = stats.binomtest(20 * (right // 20), 20).proportion_ci(method="exact")
    assert right == 10 or (found.low, found.high) == pytest.approx((low, high))


def test_a_comparison_carries_the_interval_of_the_paired_difference():
    rng = np.random.default_rng(2)
    before, after = counted(rng.random(300) < 0.6), counted(rng.random(300) < 0.8)
    clusters = [str(index // 5) for index in range(300)]
    found = significance(before, after, clusters, resamples=1000, seed=4)
    same = paired_difference(by_cluster(clusters, before), by_cluster(clusters, after), seed=4)
    assert found.difference == same
    assert found.p < 0.01 < found.difference.low


def test_a_run_compared_with_itself_has_no_difference_and_p_one():
    counts = yes_no_counts(SAID * 2, TRUE * 2)
    for statistic in (accuracy, f1, harmonic_share):
        found = significance(counts, counts, [str(index) for index in range(16)], statistic)
        assert (found.difference.value, found.p) == (0, 1)


def test_the_bootstrap_p_value_is_twice_the_rarer_side():
    # 3 of 99 draws on the other side, one added to both counts: 2 * 4 / 100
    assert bootstrap_p(np.array([-1.0] * 3 + [1.0] * 96)) == pytest.approx(0.08)
    assert bootstrap_p(np.array([1.0] * 99)) == pytest.approx(0.02)
    assert bootstrap_p(np.array([0.0] * 99)) == 1.0
    assert bootstrap_p(np.array([np.nan, *[1.0] * 99])) == pytest.approx(0.02)
    assert np.isnan(bootstrap_p(np.array([np.nan])))


@pytest.mark.parametrize("comparisons", [1, 3, 10])
def test_the_resolution_of_an_unchanged_run_is_what_the_exact_test_can_just_tell(comparisons):
    before = np.array([[0.0, 1.0]] * 40)

    def corrected(gained):
        after = before.copy()
        after[:gained, 0] = 1.0
        least = significance(before, after, [str(picture) for picture in range(40)], share)
        return correct_p_values({"it": least, **{str(n): unchanged for n in range(1, comparisons)}})["it"].adjusted_p

    unchanged = significance(before, before, [str(picture) for picture in range(40)], share)
    fewest = round(find_resolution(unchanged, comparisons) * 40)
    assert corrected(fewest) < 0.05 <= corrected(fewest - 1)


def test_a_difference_as_large_as_the_resolution_is_told_in_about_half_of_all_runs():
    draw = np.random.default_rng(0)
    told, least = [], []
    for _ in range(60):
        before, after = (np.stack([draw.random(200) < rate, np.ones(200)], 1).astype(float) for rate in (0.5, 0.6))
        found = significance(before, after, [str(picture) for picture in range(200)], share, resamples=400)
        told.append(found.p < 0.05)
        least.append(find_resolution(found))
    assert np.mean(least) == pytest.approx(0.1, abs=0.01), "the true difference is the resolution"
    assert 0.35 < np.mean(told) < 0.65


def test_a_score_of_nothing_has_no_p_value():
    nothing = np.zeros((4, 2))
    assert np.isnan(significance(nothing, nothing, list("abcd")).p)


def test_holm_of_a_case_worked_out_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and none below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
    found = holm([0.01, float("nan"), 0.02])
    assert (found[0], found[2]) == pytest.approx((0.02, 0.02))
    assert np.isnan(found[1])


def test_holm_is_written_beside_the_p_value():
    before, after = answers(9, 2)
    strong = significance(counted(before), counted(after), [str(index) for index in range(21)])
    weak = significance(counted(before), counted(before), [str(index) for index in range(21)])
    found = correct_p_values({"strong": strong, "weak": weak})
    assert strong.adjusted_p is None
    assert found["strong"].adjusted_p == pytest.approx(2 * strong.p)
    assert (found["weak"].adjusted_p, found["strong"].p) == (1.0, strong.p)


def test_statistics_of_counts_are_the_scores_of_the_same_answers():
    totals, scores = yes_no_counts(SAID, TRUE).sum(0), yes_no_scores(SAID, TRUE)
    assert accuracy(totals) == pytest.approx(scores.accuracy)
    assert f1(totals) == pytest.approx(scores.f1)
    assert yes_ratio(totals) == pytest.approx(scores.yes_ratio)
    assert mean_share(totals) == pytest.approx(scores.balanced_accuracy)
    # recall of yes 2/3, of no 3/5: 2 * (2/3) * (3/5) / (19/15)
    assert harmonic_share(totals) == pytest.approx(12 / 19)


def test_always_yes_earns_nothing_by_the_harmonic_mean():
    totals = yes_no_counts([True] * 8, TRUE).sum(0)
    assert (mean_share(totals), harmonic_share(totals)) == (0.5, 0.0)
    assert np.isnan(harmonic_share(yes_no_counts([True], [True]).sum(0)))
    assert np.isnan(f1(np.zeros(5)))


def test_statistics_take_many_resamples_at_once():
    totals = np.random.default_rng(3).integers(1, 9, size=(7, 3, 5)).astype(float)
    for statistic in (share, accuracy, f1, harmonic_share, yes_ratio, mean_share):
        assert statistic(totals).shape == (7, 3)
        assert statistic(totals)[4, 1] == pytest.approx(statistic(totals[4, 1]))


def test_blocks_of_resamples_are_the_same_resamples(monkeypatch):
    totals = np.random.default_rng(5).integers(0, 9, size=(30, 2)).astype(float)
    whole = interval(totals, seed=1)
    monkeypatch.setattr("lvlm_guard.bench.scoring.intervals._ENTRIES_AT_ONCE", 100)
    assert interval(totals, seed=1) == whole


def test_a_stack_that_changes_no_answer_is_told():
    nothing = count_changes(["yes", "no"], ["yes", "no"])
    assert (nothing.is_none, nothing.share, nothing.verdict) == (True, 0.0, "changed nothing")
    some = count_changes(["yes", "no", "no", "no"], ["yes", "yes", "no", "no"])
    assert (some.is_none, some.share, some.verdict) == (False, 0.25, "changed 1 of 4 answers")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: count_changes([], []), "0 plain"),
        (lambda: count_changes(["a"], ["a", "b"]), "one of each"),
        (lambda: mcnemar([True], [True, False]), "shapes differ"),
        (lambda: sign_flip([0.5]), "whole numbers"),
        (lambda: holm([1.5]), "between 0 and 1"),
        (lambda: significance([[1, 1]], [[1, 1], [1, 1]], ["a"]), "n names"),
        (lambda: significance([[1, 1]], [[1, 1]], ["a", "b"]), "2 clusters"),
        (lambda: significance(np.zeros((0, 2)), np.zeros((0, 2)), []), "n at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
