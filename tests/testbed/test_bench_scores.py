"""Scores against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lvlm_guard.bench.scoring.intervals import by_cluster, interval, mean_share, paired_difference
from lvlm_guard.bench.scoring.scores import auc, caption_scores, count_caption, parse_word, parse_yes_no, yes_no_scores


@pytest.mark.parametrize(
    ("text", "said"),
    [("yes", True), ("Yes, there is.", True), (" no .", False), ("maybe yes", None), ("", None), ("north", None)],
)
def test_only_the_first_word_says_yes_or_no(text: str, said: bool | None) -> None:
    assert parse_yes_no(text) is said


def test_parse_word_finds_the_first_known_word() -> None:
    assert parse_word("it is Blue , not red", {"red", "blue"}) == "blue"
    assert parse_word("it is bluish", {"red", "blue"}) is None


def test_yes_no_scores_of_a_hand_case() -> None:
    # 3 true yes: said yes, yes, no. 5 true no: said yes, no, no, no, nonsense.
    said = [True, True, False, True, False, False, False, None]
    scores = yes_no_scores(said, [True] * 3 + [False] * 5)
    assert scores.accuracy == pytest.approx(5 / 8)
    assert scores.balanced_accuracy == pytest.approx((2 / 3 + 3 / 5) / 2)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 / 3)
    assert scores.yes_ratio == pytest.approx(3 / 8)
    assert (scores.unparsed, scores.n) == (1, 8)


def test_nothing_answered_scores_zero_and_uneven_lengths_are_refused() -> None:
    assert yes_no_scores([], []).accuracy == 0
    with pytest.raises(ValueError, match="longer"):
        yes_no_scores([True], [True, False])


def test_caption_scores_of_a_hand_case() -> None:
    # first: names mug, mug, pan of {mug, egg}: 1 of 3 names absent, 1 of 2 found; second: names egg of {egg}.
    counts = [count_caption(["mug", "mug", "pan"], {"mug", "egg"}, 12), count_caption(["egg"], {"egg"}, 4)]
    scores = caption_scores(counts)
    assert scores.chair_s == pytest.approx(1 / 2)
    assert scores.chair_i == pytest.approx(1 / 4)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.length == pytest.approx(8)


def test_rows_of_one_scene_are_added_up() -> None:
    assert by_cluster(["b", "a", "b"], [[1, 1], [0, 1], [1, 1]]).tolist() == [[0, 1], [2, 2]]


def test_interval_value_is_the_pooled_share_and_scenes_of_one_answer_have_no_bounds() -> None:
    assert interval(np.array([[1.0, 2.0], [4.0, 4.0]])).value == pytest.approx(5 / 6)
    same = interval(np.array([[1.0, 2.0]] * 9))
    assert same.value == 0.5
    assert math.isnan(same.low), "scenes that are all alike say nothing of chance"


def test_interval_covers_as_the_normal_approximation_does() -> None:
    right = np.random.default_rng(0).random(400) < 0.8
    found = interval(np.stack([right, np.ones(400)], axis=1).astype(float), resamples=4000)
    half = 1.96 * (found.value * (1 - found.value) / 400) ** 0.5
    assert found.low == pytest.approx(found.value - half, abs=0.006)
    assert found.high == pytest.approx(found.value + half, abs=0.006)


def test_answers_that_go_together_widen_the_interval() -> None:
    right = np.repeat(np.random.default_rng(1).random(60) < 0.5, 10).astype(float)
    counts = np.stack([right, np.ones(600)], axis=1)
    alone = interval(by_cluster([str(i) for i in range(600)], counts))
    together = interval(by_cluster([str(i // 10) for i in range(600)], counts))
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


def test_the_difference_of_a_system_to_itself_is_exactly_nothing() -> None:
    totals = np.random.default_rng(2).random((30, 2))
    same = paired_difference(totals, totals)
    assert same.value == 0
    assert math.isnan(same.low)


def test_a_constant_gain_is_certain_when_paired() -> None:
    before = np.stack([np.arange(20) % 2, np.full(20, 2)], axis=1).astype(float)
    gain = paired_difference(before, before + np.array([1, 0]))
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.5, 0.5, 0.5))


def test_mean_share_is_the_mean_of_both_sides() -> None:
    assert mean_share(np.array([3.0, 4.0, 1.0, 10.0])) == pytest.approx((0.75 + 0.1) / 2)


def test_the_same_seed_gives_the_same_interval_and_no_scene_is_refused() -> None:
    totals = np.random.default_rng(3).random((10, 2))
    assert interval(totals, seed=5) == interval(totals, seed=5) != interval(totals, seed=6)
    with pytest.raises(ValueError, match="at least one scene"):
        interval(np.zeros((0, 2)))


def counted(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive scores higher than a negative, over all pairs, ties half."""
    pairs = [(1.0 if a > b else 0.5 if a == b else 0.0) for a in scores[positive] for b in scores[~positive]]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_auc_equals_a_count_over_all_pairs(levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(levels, size=60).astype(float), rng.random(60) < 0.3
    assert auc(list(scores), list(positive)) == pytest.approx(counted(scores, positive))


def test_auc_of_hand_cases() -> None:
    assert auc([1.0, 2.0, 3.0, 4.0], [False, False, True, True]) == 1.0
    assert auc([1.0, 2.0, 3.0, 4.0], [True, True, False, False]) == 0.0
    assert auc([7.0, 7.0, 7.0], [True, False, True]) == 0.5
    assert np.isnan(auc([1.0, 2.0], [True, True]))
    assert np.isnan(auc([], []))
    with pytest.raises(ValueError, match="longer"):
        auc([1.0], [True, False])
