"""Intervals cover, and tests are wrong as often as they say, on simulated answers of which several are about one picture.

The seeds are fixed; bounds are three Monte-Carlo standard errors wide.
"""

from __future__ import annotations

import numpy as np
import pytest

from lvlm_guard.bench.scoring.intervals import (
    FEWEST,
    accuracy,
    f1,
    harmonic_share,
    interval,
    paired_difference,
    share,
    yes_no_counts,
)
from lvlm_guard.bench.scoring.significance import BOOTSTRAP, SIGN_FLIP, mcnemar, sign_flip, significance

RUNS, IMAGES, QUESTIONS, RESAMPLES = 400, 120, 6, 300
LEVEL = 0.05
CLUSTERS = [str(index // QUESTIONS) for index in range(IMAGES * QUESTIONS)]


def error(chance: float, runs: int = RUNS) -> float:
    """Three Monte-Carlo standard errors of a share of so many runs."""
    return 3 * (chance * (1 - chance) / runs) ** 0.5


def abilities(rng: np.random.Generator) -> np.ndarray:
    """The chance of a right answer per picture, mean one half; answers about one picture correlate by 0.2."""
    return rng.beta(2, 2, size=(IMAGES, 1))


def answered(rng: np.random.Generator, chance: np.ndarray) -> np.ndarray:
    """Right answers, bool (IMAGES, QUESTIONS)."""
    return rng.random((IMAGES, QUESTIONS)) < chance


def per_image(right: np.ndarray) -> np.ndarray:
    """Totals (right, asked), one row per picture."""
    return np.stack([right.sum(1), np.full(len(right), right.shape[1])], axis=1).astype(float)


def per_question(right: np.ndarray) -> np.ndarray:
    """The same as if every question had a picture of its own."""
    return per_image(right.reshape(-1, 1))


def exchangeable(rng: np.random.Generator, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The answers, and with some turned, all of one picture in one direction; which comes first is drawn per picture."""
    turned = (rng.random((IMAGES, 1)) < 0.4) & (rng.random((IMAGES, QUESTIONS)) < 0.5)
    other = np.where(turned, rng.random((IMAGES, 1)) < 0.5, right)
    swapped = rng.random((IMAGES, 1)) < 0.5
    return np.where(swapped, other, right), np.where(swapped, right, other)


def yes_no(rng: np.random.Generator, chance: np.ndarray) -> np.ndarray:
    """Rows of `yes_no_counts`, half of the questions true."""
    right, true = answered(rng, chance), np.arange(QUESTIONS) % 2 == 0
    rows = np.stack(np.broadcast_arrays(right & true, true, right & ~true, ~true, right == true), axis=-1)
    return rows.reshape(-1, 5).astype(float)


def captions(rng: np.random.Generator, chance: np.ndarray) -> np.ndarray:
    """Rows (absent, named) of one caption per picture."""
    named = 1 + rng.poisson(4, size=IMAGES)
    return np.stack([rng.binomial(named, chance[:, 0]), named], axis=1).astype(float)


def covered(draw, truth: float, runs: int = RUNS) -> float:
    """Share of runs whose interval holds the truth."""
    found = [draw(np.random.default_rng(seed)) for seed in range(runs)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def rejected(draw, runs: int = RUNS) -> float:
    """Share of runs with a p value of at most `LEVEL`."""
    return float(np.mean([draw(np.random.default_rng(seed)) <= LEVEL for seed in range(runs)]))


def test_the_clustered_interval_covers_the_truth_and_the_unclustered_one_does_not():
    def draw(totals):
        return lambda rng: interval(totals(answered(rng, abilities(rng))), resamples=RESAMPLES)

    clustered, unclustered = covered(draw(per_image), 0.5, 1000), covered(draw(per_question), 0.5, 100)
    print(f"coverage of 95 %: clustered {clustered:.3f}, unclustered {unclustered:.3f}")
    assert clustered == pytest.approx(0.95, abs=error(0.95, 1000))
    assert unclustered < 0.95 - error(0.95, 100)


def test_the_paired_interval_covers_a_true_gain():
    gain = 0.3 * (2 / 3 - 1 / 2)

    def draw(rng):
        before = abilities(rng)
        after = 0.7 * before + 0.3 * rng.beta(4, 2, size=(IMAGES, 1))
        return paired_difference(per_image(answered(rng, before)), per_image(answered(rng, after)), resamples=RESAMPLES)

    found = covered(draw, gain, 1000)
    print(f"coverage of a gain of {gain:.3f}: {found:.3f}")
    assert found == pytest.approx(0.95, abs=error(0.95, 1000))


def test_the_sign_flip_keeps_its_level_where_mcnemar_does_not():
    def draw(test):
        def p(rng):
            return test(*exchangeable(rng, answered(rng, abilities(rng))))

        return p

    runs = 1000
    flip = rejected(draw(lambda old, new: sign_flip(new.sum(1) - old.sum(1))), runs)
    naive = rejected(draw(lambda old, new: mcnemar(old.ravel(), new.ravel())), runs)
    print(f"false positives at {LEVEL}: sign flip {flip:.3f}, McNemar over questions {naive:.3f}")
    assert 0.02 < flip <= LEVEL + error(LEVEL, runs)
    assert naive > 2 * LEVEL


def test_mcnemar_keeps_its_level_where_every_question_has_its_own_picture():
    def p(rng):
        chance = rng.beta(2, 2, size=500)
        return mcnemar(rng.random(500) < chance, rng.random(500) < chance)

    found = rejected(p, 1000)
    print(f"false positives at {LEVEL}: McNemar {found:.3f}")
    assert 0.02 < found <= LEVEL + error(LEVEL, 1000)


@pytest.mark.parametrize("pictures", [1, 4, 10, 20, 60])
@pytest.mark.parametrize("statistic", [share, f1])
def test_few_pictures_do_not_find_what_is_not_there(statistic, pictures):
    clusters = [str(index // QUESTIONS) for index in range(pictures * QUESTIONS)]

    def p(rng):
        before, after = (one[:pictures] for one in exchangeable(rng, answered(rng, abilities(rng))))
        true = np.broadcast_to(np.arange(QUESTIONS) % 2 == 0, before.shape)
        rows = [yes_no_counts((one == true).ravel().tolist(), true.ravel().tolist()) for one in (before, after)]
        return significance(*rows, clusters, accuracy if statistic is share else statistic, resamples=RESAMPLES).p

    found = rejected(p)
    print(f"{pictures} pictures: false positives {found:.3f}")
    assert found == 0 if pictures < FEWEST else found <= LEVEL + error(LEVEL)


@pytest.mark.parametrize(("statistic", "counts"), [(f1, yes_no), (harmonic_share, yes_no), (share, captions)])
def test_the_bootstrap_keeps_its_level_for_scores_that_are_no_means(statistic, counts):
    clusters = CLUSTERS if counts is yes_no else [str(index) for index in range(IMAGES)]
    tests = set()

    def draw(gain):
        def p(rng):
            chance = abilities(rng)
            before, after = counts(rng, chance), counts(rng, chance + gain * (1 - chance))
            found = significance(before, after, clusters, statistic, resamples=RESAMPLES)
            tests.add(found.test)
            return found.p

        return p

    null, real = rejected(draw(0.0)), rejected(draw(0.3), 50)
    print(f"{getattr(statistic, '__name__', 'CHAIR_i')}: false positives {null:.3f}, power {real:.2f}")
    assert tests == {BOOTSTRAP}
    assert 0.02 < null <= LEVEL + error(LEVEL)
    assert real > 0.9


def test_a_gain_is_found_although_the_answers_go_together():
    def p(rng):
        chance = abilities(rng)
        before, after = answered(rng, chance), answered(rng, chance + 0.2 * (1 - chance))
        rows = (per_question(before), per_question(after))
        found = significance(*rows, CLUSTERS, resamples=RESAMPLES)
        assert found.test == SIGN_FLIP
        return found.p

    assert rejected(p, 100) > 0.9
