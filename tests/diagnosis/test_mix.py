"""Known items that ask otherwise than those of the profile, or are about fewer pictures, are no fault of the model."""

from collections import Counter
from dataclasses import dataclass

import pytest

from lvlm_guard.diagnosis import diagnose_model, load_known_items
from lvlm_guard.diagnosis.model.diagnosing import _score
from lvlm_guard.diagnosis.model.items import BATTERY, count_effective, count_pictures, deal
from lvlm_guard.diagnosis.model.judging import K
from lvlm_guard.diagnosis.model.measuring import measure
from lvlm_guard.diagnosis.model.mix import QuestionMix
from lvlm_guard.diagnosis.model.structure import inspect_structure
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.suite import Scenes


@dataclass(frozen=True)
class Asked:
    """A question of a kind, and its answer."""

    kind: str
    answer: str


def ask(**counts):
    """Questions by kind and answer, `kind_answer=count`."""
    return [Asked(*name.split("_")) for name, count in counts.items() for _ in range(count)]


def test_items_are_weighed_to_ask_as_the_mix_does():
    mix = QuestionMix.of(ask(object_yes=30, object_no=30, colour_red=20, colour_blue=20), 24)
    items = ask(object_yes=9, object_no=3, colour_red=2, colour_blue=10)
    weights = Counter()
    for item, weight in zip(items, mix.weigh(items), strict=True):
        weights[item] += weight / len(items)
    expected = {("object", "yes"): 0.3, ("object", "no"): 0.3, ("colour", "red"): 0.2, ("colour", "blue"): 0.2}
    assert {(item.kind, item.answer): share for item, share in weights.items()} == pytest.approx(expected)


def test_rare_answers_are_weighed_together():
    mix = QuestionMix.of(ask(colour_red=100, colour_teal=1, colour_plum=1, colour_sand=1), 24)
    items = ask(colour_red=10, colour_teal=2, colour_jade=3)
    weights = mix.weigh(items)
    assert weights[10:] == pytest.approx([weights[10]] * 5)
    assert sum(weights[10:]) / sum(weights) == pytest.approx(3 / 103)


def test_kinds_and_answers_that_are_not_there_leave_their_share_to_others_and_unknown_ones_count_nothing():
    mix = QuestionMix.of(ask(object_yes=30, object_no=30, colour_red=40), 24)
    weights = mix.weigh(ask(object_yes=2, shape_round=1, colour_red=1))
    assert weights == pytest.approx([0.6 * 4 / 2, 0.6 * 4 / 2, 0.0, 0.4 * 4])


def test_a_mix_is_read_as_it_was_written():
    mix = QuestionMix.of(ask(object_yes=30, object_no=30, colour_red=40, colour_sand=1), 24)
    assert QuestionMix.from_dict(mix.to_dict()) == mix


def test_items_of_other_kinds_are_refused(sound, known, profile):
    captions = [item for item in known if item.is_caption]
    with pytest.raises(InputError, match="No known item is of kind 'attribute colour', 'attribute is_colour'"):
        diagnose_model(*sound, (captions * 24)[:48], profile=profile)
    foreign = [Asked("animals", "yes")]
    with pytest.raises(InputError, match="of kind 'animals', which the profile's items has none of"):
        profile.mix.check(foreign, "the profile's items")


@pytest.fixture(scope="module")
def skewed():
    """Known items of which a third are captions, and an eighth of the profile's."""
    items = load_known_items(Scenes(split="calibration", count=300, seed=31), 400)
    captions = [item for item in items if item.is_caption][:16]
    return captions + [item for item in items if not item.is_caption][:32]


def find_top(sound, items, profile, *, weighed=True, expecting=True):
    """The component that is farthest off, and how far."""
    model, processor = sound
    mix = profile.mix if weighed else None
    batteries = deal(items, mix=profile.mix)
    measured = [
        measure(model, processor, inspect_structure(model), battery, profile.tokens, mix) for battery in batteries
    ]
    excesses = [profile.expect_excess(battery) if expecting else 0.0 for battery in batteries]
    return max(_score(measured, profile, excesses).values())


def test_a_sound_model_is_not_blamed_for_what_it_is_asked(sound, skewed, profile):
    assert find_top(sound, skewed, profile, weighed=False) > K
    assert find_top(sound, skewed, profile) < K
    assert diagnose_model(*sound, skewed, profile=profile).culprit.component == "none"


def test_a_sound_model_is_not_blamed_for_few_pictures(sound, profile):
    items = load_known_items(Scenes(split="calibration", count=6, seed=13), 48)
    assert find_top(sound, items, profile, expecting=False) > K
    verdict = diagnose_model(*sound, items, profile=profile)
    assert verdict.culprit.component == "none"
    assert any(reason.startswith("pictures: the items are about fewer pictures") for reason in verdict.partial)


def test_known_items_are_of_as_many_pictures_as_there_are():
    items = load_known_items(Scenes(split="calibration", count=60, seed=3), 48)
    assert count_pictures(items) >= 45
    assert all(count_effective(battery) > BATTERY - 2 for battery in deal(items))


def test_many_pictures_are_no_reason_to_expect_less(profile):
    items = load_known_items(Scenes(split="calibration", count=60, seed=3), 24)
    few = items[:1] * 24
    assert profile.expect_excess(items) < 0.3 < profile.expect_excess(few)
