"""Inventions against recall: what cutting greedy's captions gains, and what a system gains beyond it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.scoring.frontier import (
    FEWER,
    RANDOM,
    SHORTER,
    LengthAdjustedGain,
    build_plane,
    find_caption_measures,
)
from lvlm_guard.bench.scoring.intervals import f1, share
from lvlm_guard.bench.scoring.measures import Measure, each
from lvlm_guard.bench.scoring.scores import count_caption
from lvlm_guard.testbed.suite import Scenes

WORDS = [f"thing{number}" for number in range(20)]


def counts(answer):
    return count_caption([word for word in answer.text.split() if word in WORDS], answer.item.truth, 1)


CHAIR = Measure(
    "chair_i",
    "object",
    "absent",
    each(lambda one: (counts(one).absent, counts(one).named)),
    share,
    higher_is_better=False,
)
RECALL = Measure("recall", "object", "named", each(lambda one: (counts(one).found, counts(one).present)))
PAIR = (CHAIR, RECALL)


def written(invent=0.2, omit=0.1, count=200, seed=0, late=0.0):
    """Captions that name what is there but for some, and invent; `late` puts inventions at the end."""
    draw = random.Random(seed)
    answers = []
    for number in range(count):
        present = draw.sample(WORDS, 5)
        absent = [word for word in WORDS if word not in present]
        named = [word for word in present if draw.random() > omit]
        inventions = [draw.choice(absent) for _ in named if draw.random() < invent]
        if draw.random() < late:
            words = [*named, *inventions]
        else:
            words = [*named, *inventions]
            draw.shuffle(words)
        item = Item(f"c{number}", f"p{number}", "describe", present, "object", "caption")
        answers.append(AnsweredItem(item, " and ".join(words) + " ."))
    return answers


def changed(answers, change, seed=1):
    draw = random.Random(seed)
    return [AnsweredItem(one.item, change(one, draw)) for one in answers]


def first_half(one, draw):
    words = one.text.split()
    return " ".join(words[: len(words) // 2])


def some(one, draw):
    return " ".join(word for word in one.text.split() if draw.random() < 0.6)


def seeing(one, draw):
    """Leaves out inventions, mostly."""
    return " ".join(word for word in one.text.split() if word in one.item.truth or draw.random() < 0.4)


def gain_of(answers, system):
    plane = build_plane(PAIR, {"greedy": answers, "own": system}, {"greedy": "control", "own": "stack"}, "greedy", 500)
    return plane.of("own").gain


def test_shorter_captions_stay_on_the_frontier_and_better_ones_are_above_it():
    plain = written()
    for cheat in (first_half, some, lambda one, draw: one.text):
        gain = gain_of(plain, changed(plain, cheat))
        assert not (gain.difference.value > 0 and gain.p < 0.05), cheat
        assert gain.difference.value < 0.01
    gain = gain_of(plain, changed(plain, seeing))
    assert gain.difference.value > 0.05
    assert gain.difference.low > 0
    assert gain.p < 0.01


def test_inventions_that_come_last_are_cut_off_for_nothing():
    plain = written(late=1.0)
    rates = {
        name: CHAIR.value(changed(plain, cheat))
        for name, cheat in (("half", first_half), ("plain", lambda one, _: one.text))
    }
    assert rates["half"] < rates["plain"] - 0.05, "no power: a difference to greedy, which a cut explains"
    gain = gain_of(plain, changed(plain, first_half))
    assert gain.difference.value < 0.01


def test_captions_worse_than_cut_ones_are_below_the_frontier():
    plain = written()
    worse = changed(
        plain, lambda one, draw: one.text + " " + draw.choice([w for w in WORDS if w not in one.item.truth])
    )
    gain = gain_of(plain, worse)
    assert gain.difference.value < -0.05
    assert gain.difference.high < 0


def test_the_curves_are_counts_of_cut_captions():
    plain = written(count=40)
    plane = build_plane(PAIR, {"greedy": plain}, {"greedy": "control"}, "greedy", 99)
    for point in plane.curves[SHORTER][::6]:
        cut = [
            AnsweredItem(
                one.item, " ".join(one.text.split()[: int(np.ceil(len(one.text.split()) * point.share_left - 1e-9))])
            )
            for one in plain
        ]
        assert point.coverage == pytest.approx(RECALL.value(cut))
        assert point.invention == pytest.approx(CHAIR.value(cut))
    assert plane.curves[FEWER][0] == plane.curves[SHORTER][0]
    for first, last in zip(plane.curves[FEWER], plane.curves[FEWER][1:], strict=False):
        assert last.coverage <= first.coverage
    whole = plane.curves[RANDOM][0]
    assert {point.invention for point in plane.curves[RANDOM]} == {whole.invention}
    assert plane.of("greedy").gain is None
    assert (plane.of("greedy").coverage, plane.of("greedy").invention) == pytest.approx(
        (whole.coverage, whole.invention)
    )


def test_the_gain_is_the_distance_to_the_frontier_at_the_systems_recall():
    cuts = np.zeros((2, 25, 4))
    cuts[:, 0] = (20, 100, 80, 100)
    cuts[:, 1:] = (0, 0, 0, 100)
    cuts[0, 1] = (5, 50, 40, 100)
    statistic = LengthAdjustedGain()
    for own, wanted in (
        ((10, 100, 60, 100), 0.15 - 0.1),
        ((10, 100, 90, 100), 0.2 - 0.1),
        ((3, 10, 10, 100), 0.1 - 0.3),
    ):
        assert float(statistic(np.concatenate([own, cuts.ravel()]))) == pytest.approx(wanted)
    cuts[0, 1] = (5, 85, 80, 100)
    assert float(statistic(np.concatenate([(20, 100, 80, 100), cuts.ravel()]))) == pytest.approx(5 / 85 - 0.2)


def test_few_pictures_have_no_p_value_and_suites_without_captions_no_plane():
    plain = written(count=6)
    gain = gain_of(plain, changed(plain, seeing))
    assert np.isnan(gain.p)
    assert np.isnan(gain.difference.low)
    assert build_plane(PAIR, {"greedy": []}, {"greedy": "control"}, "greedy", 99) is None
    assert build_plane(PAIR, {"own": plain}, {"own": "stack"}, "greedy", 99) is None


def test_the_measures_of_a_plane_are_found_by_what_they_count():
    found = find_caption_measures(Scenes().measures("ours"))
    assert [one.name for one in found] == ["chair_i", "recall"]
    assert find_caption_measures([CHAIR]) is None
    assert find_caption_measures([RECALL]) is None
    assert (
        find_caption_measures([Measure("chair_s", "object", "", CHAIR.count, share, False, binary=True), *PAIR]) == PAIR
    )
    assert find_caption_measures([Measure("chair_x", "object", "", CHAIR.count, f1, False), RECALL]) is None
