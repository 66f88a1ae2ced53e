"""Scenes are reproducible, the splits are apart, and the habits are there exactly where they should be."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest

from lvlm_guard.testbed import TestbedError
from lvlm_guard.testbed.world.compose import LEVELS
from lvlm_guard.testbed.world.drawing import CELL, outline
from lvlm_guard.testbed.world.habits import CATEGORIES, COLOUR_NAMES, HOME, PAIRS, PARTNER, TYPICAL_COLOUR
from lvlm_guard.testbed.world.scenes import HABITS, SPLITS, Scene, absent_partners, scene, scenes

COUNT = 2000


@pytest.fixture(scope="module")
def habitual() -> list[Scene]:
    return scenes("train", COUNT, seed=11)


@pytest.fixture(scope="module")
def counterfactual() -> list[Scene]:
    return scenes("counterfactual", COUNT, seed=11)


def _near(share: float, expected: float, count: int) -> bool:
    """Within four standard errors of a share estimated from `count` draws."""
    return abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


def test_same_arguments_give_the_same_pictures() -> None:
    first, second = (scenes("iid", 20, seed=4) for _ in range(2))
    assert first == second
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, second, strict=True))
    assert first[7] == scene("iid", 7, seed=4) == scenes("iid", 1, seed=4, start=7)[0]


def test_pictures_do_not_change_between_versions() -> None:
    drawn = b"".join(one.pixels.tobytes() for one in scenes("counterfactual", 5))
    assert hashlib.sha256(drawn).hexdigest()[:16] == "bf8fbe7318511309"


def test_a_picture_is_rgb_and_64_wide() -> None:
    picture = scene("train", 0).picture
    assert (picture.mode, picture.size) == ("RGB", (64, 64))


def test_splits_seeds_and_numbers_share_no_picture() -> None:
    drawn = [one.pixels.tobytes() for split in SPLITS for seed in (0, 1) for one in scenes(split, 50, seed)]
    assert len(set(drawn)) == len(drawn) == 2 * 50 * len(SPLITS)


def test_a_thousand_scenes_are_drawn_in_under_twenty_seconds() -> None:
    begun = time.perf_counter()
    for one in scenes("train", 250, seed=2):
        assert one.pixels.shape == (64, 64, 3)
    assert (time.perf_counter() - begun) * 4 < 20


def test_outlines_of_any_two_categories_differ_clearly() -> None:
    drawn = [outline(name, 14) for name in CATEGORIES]
    closest = min(np.abs(a - b).mean() for i, a in enumerate(drawn) for b in drawn[:i])
    assert closest > 0.12


def test_objects_stay_inside_their_own_cell(habitual: list[Scene]) -> None:
    for one in habitual:
        assert len({thing.cell for thing in one.objects}) == len(one.objects) == len(one.present)
        assert all(0 <= by <= CELL - thing.size for thing in one.objects for by in thing.offset)


def test_pairs_are_as_habitual_as_stated(habitual: list[Scene]) -> None:
    pairs = [
        (first in one.present, second in one.present) for one in habitual for first, second in PAIRS[one.background]
    ]
    with_first = [second for first, second in pairs if first]
    alone = [second for first, second in pairs if not first]
    assert _near(len(with_first) / len(pairs), HABITS.first, len(pairs))
    assert _near(sum(with_first) / len(with_first), HABITS.second_with_first, len(with_first))
    assert _near(sum(alone) / len(alone), HABITS.second_alone, len(alone))


def test_colours_and_intruders_are_as_habitual_as_stated(habitual: list[Scene]) -> None:
    things = [thing for one in habitual for thing in one.objects]
    typical = sum(thing.colour == TYPICAL_COLOUR[thing.category] for thing in things) / len(things)
    assert _near(typical, HABITS.typical_colour, len(things))
    visited = sum(any(HOME[name] != one.background for name in one.present) for one in habitual)
    assert _near(visited / len(habitual), HABITS.intruder, len(habitual))


def test_orders_are_as_habitual_as_stated_and_pairs_never_share_a_column(habitual: list[Scene]) -> None:
    left = [one.find(first).cell[1] - one.find(second).cell[1] for one in habitual for first, second in whole(one)]
    assert 0 not in left
    assert _near(sum(by < 0 for by in left) / len(left), HABITS.first_left, len(left))


def whole(one: Scene) -> list[tuple[str, str]]:
    return [pair for pairs in PAIRS.values() for pair in pairs if set(pair) <= one.present]


def broken_habits(one: Scene) -> list[tuple[str, str, str]]:
    """Every habit a scene breaks, read off its objects alone."""
    halves = [pair for pair in PAIRS[one.background] if len(one.present & set(pair)) == 1]
    alone = [(a, b) if a in one.present else (b, a) for a, b in halves]
    turned = [(a, b) for a, b in whole(one) if one.find(a).cell[1] >= one.find(b).cell[1]]
    odd = [(x.category, TYPICAL_COLOUR[x.category]) for x in one.objects if x.colour != TYPICAL_COLOUR[x.category]]
    levels = (("object", alone), ("attribute", odd), ("relation", turned))
    return [(level, *pair) for level, pairs in levels for pair in pairs]


def test_counterfactual_scenes_break_exactly_the_habit_they_state(counterfactual: list[Scene]) -> None:
    for one in counterfactual:
        assert one.broken is not None
        assert broken_habits(one) == [(one.broken.level, one.broken.subject, one.broken.expected)]
        strangers = [name for name in one.present if HOME[name] != one.background]
        assert not any(PARTNER[name] in one.present for name in strangers)
        assert absent_partners(one) == ((one.broken.expected,) if one.broken.level == "object" else ())


def test_the_broken_level_goes_round(counterfactual: list[Scene]) -> None:
    assert [one.broken.level for one in counterfactual] == [LEVELS[index % 3] for index in range(COUNT)]
    every = {(one.broken.subject, one.broken.expected) for one in counterfactual if one.broken.level == "relation"}
    assert every == {pair for pairs in PAIRS.values() for pair in pairs}
    assert {one.broken.subject for one in counterfactual if one.broken.level == "object"} == set(CATEGORIES)


def test_calibration_holds_habitual_and_broken_scenes_in_turn() -> None:
    drawn = scenes("calibration", 60, seed=3)
    assert all(one.broken is None for one in drawn[::2])
    assert [one.broken.level for one in drawn[1::2]] == [LEVELS[index % 3] for index in range(30)]
    for one in drawn[1::2]:
        assert broken_habits(one) == [(one.broken.level, one.broken.subject, one.broken.expected)]


def test_flat_scenes_have_no_habits() -> None:
    things = [thing for one in scenes("flat", 1000, seed=5) for thing in one.objects]
    for colour in COLOUR_NAMES:
        assert _near(sum(thing.colour == colour for thing in things) / len(things), 1 / len(COLOUR_NAMES), len(things))
    home = sum(HOME[thing.category] == one.background for one in scenes("flat", 1000, seed=5) for thing in one.objects)
    assert _near(home / len(things), 1 / 4, len(things))


def test_seed_and_number_must_not_be_negative() -> None:
    with pytest.raises(TestbedError, match="seed -1"):
        scenes("iid", 1, seed=-1)
    with pytest.raises(TestbedError, match="index -1"):
        scene("iid", -1)


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TestbedError, match="Known: train, calibration, iid, counterfactual"):
        scenes("test", 1)
