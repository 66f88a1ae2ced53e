"""Calibration and held-out items are about different pictures, and enough of them."""

from __future__ import annotations

import pytest

from lvlm_guard.errors import InputError
from lvlm_guard.tuning.objectives import check_levels
from lvlm_guard.tuning.splits import split_suite


def test_scenes_bring_their_own_calibration_split():
    splits = split_suite("scenes:count=12,captions=2,seed=5")
    searched, judged = splits.calibration.describe(), splits.held_out.describe()
    assert (searched["arguments"]["split"], judged["arguments"]["split"]) == ("calibration", "counterfactual")
    assert {searched["arguments"][name] == judged["arguments"][name] for name in ("count", "seed", "captions")} == {
        True
    }
    assert not {item.image for item in splits.calibration.items} & {item.image for item in splits.held_out.items}


def test_half_sets_whole_pictures_aside():
    splits = split_suite("scenes:count=30,captions=0", "half")
    sides = [{item.cluster for item in part.items} for part in (splits.calibration, splits.held_out)]
    assert not sides[0] & sides[1]
    assert min(len(side) for side in sides) > 5
    total = split_suite("scenes:count=30,captions=0").held_out
    assert len(splits.calibration.items) + len(splits.held_out.items) == len(total.items)


def test_levels_keep_their_own_items():
    splits = split_suite("scenes:count=30,captions=0").keep_levels(("attribute",))
    assert {item.level for part in (splits.calibration, splits.held_out) for item in part.items} == {"attribute"}


@pytest.mark.parametrize(
    ("spec", "calibration", "words"),
    [
        ("scenes:split=calibration", None, "Name another split"),
        ("scenes", "scenes", "in both parts"),
        ("scenes:count=3", "scenes:count=20", "in both parts"),
        ("scene", None, "Did you mean 'scenes'"),
        ("scenes", "scenes:split=x", "split"),
    ],
)
def test_parts_that_cannot_be_are_refused(spec, calibration, words):
    with pytest.raises(InputError, match=words):
        split_suite(spec, calibration)


def test_too_few_pictures_are_refused():
    splits = split_suite("scenes:count=4,captions=0")
    with pytest.raises(InputError, match="below 10"):
        splits.keep_levels(("attribute",))


def test_an_unknown_level_is_refused():
    with pytest.raises(InputError, match="Did you mean 'object'"):
        check_levels(["objects"], ("object", "attribute"), "scenes")
    assert check_levels(None, ("object", "attribute"), "scenes") == ("object", "attribute")


def test_a_suite_without_a_calibration_split_says_what_to_do():
    with pytest.raises(InputError, match="--calibration half"):
        split_suite("pope")
