"""What `benchmarks/doubt.py` computes, against counts by hand."""

import json

import numpy as np
import pytest
from doubt import conclude, main
from doubt_maps import cover
from doubt_words import JudgedWord, bound, check_reliability, compare, compute_auroc
from PIL import Image

from lvlm_guard.diagnosis.answer.occlusion import cut_side


def test_auroc_counts_pairs_and_ties_as_halves():
    rng = np.random.default_rng(0)
    scores, wrong = rng.integers(0, 4, 40).astype(float), rng.random(40) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[wrong] for b in scores[~wrong]]
    assert compute_auroc(scores, wrong, np.ones(40)) == pytest.approx(np.mean(pairs))
    repeated = np.repeat(np.arange(40), 2)
    twice = compute_auroc(scores[repeated], wrong[repeated], np.ones(80))
    assert compute_auroc(scores, wrong, np.full(40, 2.0)) == pytest.approx(twice)
    assert np.isnan(compute_auroc(scores, np.zeros(40, bool), np.ones(40)))


def make_words(count=60):
    """Words whose doubt is right, beside scores of chance."""
    rng = np.random.default_rng(1)
    names = ("doubt", "entropy", "max probability", "image-free log-ratio", "image attention")
    words = []
    for number in range(count):
        is_wrong = bool(rng.random() < 0.3)
        chance = dict(zip(names, rng.random(5), strict=True))
        words.append(JudgedWord(number // 3, "object", is_wrong, {**chance, "doubt": 0.8 if is_wrong else 0.1}))
    return words


def test_the_better_score_is_said_to_be_better_and_never_the_worse():
    rows = compare(make_words(), "all scenes, both levels")
    assert rows[0]["auroc value"] == 1.0
    assert all(sentence.startswith("The default doubt beats") for sentence in conclude(rows))
    flipped = [
        JudgedWord(word.picture, word.level, word.is_wrong, {**word.scores, "doubt": -word.scores["doubt"]})
        for word in make_words()
    ]
    worse = conclude(compare(flipped, "all scenes, both levels"))
    assert worse
    assert all("is worse than" in sentence for sentence in worse)


def test_reliability_is_shares_by_bins():
    rows, error = check_reliability(make_words())
    assert [(row["doubt from"], row["share wrong"]) for row in rows] == [(0.1, 0.0), (0.8, 1.0)]
    assert error == pytest.approx((rows[0]["words"] * 0.1 + rows[1]["words"] * 0.2) / 60)
    assert bound(np.array([0.5, 0.1, 0.9])) == {"value": 0.5, "low": pytest.approx(0.12), "high": pytest.approx(0.88)}


def test_cells_are_covered_or_kept():
    rng = np.random.default_rng(2)
    levels = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
    picture, colour = Image.fromarray(levels), levels.reshape(-1, 3).mean(0).round()
    assert cut_side(30, 6)[1] == (5, 10)
    covered, shown = (np.asarray(cover(picture, [7], keeps=keeps)) for keeps in (False, True))
    assert (covered[5:10, 5:10] == colour).all()
    assert (shown[5:10, 5:10] == levels[5:10, 5:10]).all()
    assert (covered[:5] == levels[:5]).all()
    assert (shown[:5] == colour).all()


@pytest.mark.slow
def test_the_script_writes_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["doubt.py", "--tiny", "--out", str(tmp_path)])
    main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["doubt.json", "doubt.md"]
    values = json.loads((tmp_path / "doubt.json").read_text())
    assert {"scores", "reliability", "maps", "cost"} <= values.keys()
    assert [row["call"] for row in values["cost"]] == ["plain", "doubt", "doubt, ask"]
