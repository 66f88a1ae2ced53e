"""One verdict from figures that are written out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.judging import FurtherLooks, Observed, judge
from lvlm_guard.diagnosis.model.knockout import KnockoutGain
from lvlm_guard.diagnosis.verdict import ProfileFacts

HEAD, MLP, MASS = Component("head", 2, 1), Component("mlp", 0), Component("image_mass", 0)
SOUND = SimpleNamespace(log_probability=(-0.2, 0.02), swap=(0.2, 0.02), facts=ProfileFacts("0" * 64, 624, 26))


def decide(scores, log_probability=-0.5, swap=0.05, gain=0.0, attended=1.0):
    observed = Observed([], scores, {MASS: attended}, log_probability, SOUND, 48, [])
    looks = FurtherLooks(lambda components: [KnockoutGain(components[0], gain, "zero")], lambda: swap)
    return judge(observed, looks).culprit


def test_nothing_abnormal_and_nothing_worse_is_none():
    assert decide({MLP: 1.0, HEAD: 2.9}, log_probability=-0.2).component == "none"


def test_the_earliest_abnormal_component_is_named_where_the_picture_has_its_say():
    culprit = decide({MLP: 1.0, HEAD: 8.0, Component("output"): 20.0}, swap=0.2)
    assert (culprit.component, culprit.layer, culprit.head) == ("head", 2, 1)


@pytest.mark.parametrize(
    ("gain", "component"),
    [(0.2, "mlp"), (0.03, "prior"), (0.14, "prior"), (0.16, "mlp"), (-0.1, "prior")],
)
def test_a_component_is_guilty_of_answers_without_the_picture_where_it_gives_back_half_of_the_loss(gain, component):
    assert decide({MLP: 8.0}, gain=gain).component == component


def test_a_small_loss_still_takes_a_gain_that_sound_models_do_not_have():
    assert decide({MLP: 8.0}, log_probability=-0.22, gain=0.015).component == "prior"
    assert decide({MLP: 8.0}, log_probability=-0.22, gain=0.025).component == "mlp"


@pytest.mark.parametrize(
    ("attended", "component"), [(0.0, "image_mass"), (0.4, "image_mass"), (0.6, "prior"), (1.3, "prior")]
)
def test_attention_is_guilty_of_answers_without_the_picture_where_it_looks_away_from_it(attended, component):
    assert decide({MASS: 6.0, MLP: 8.0}, attended=attended).component == component


def test_attention_that_is_abnormal_is_named_where_the_picture_has_its_say():
    assert decide({MASS: 6.0, MLP: 8.0}, swap=0.2).component == "image_mass"


def test_without_a_profile_a_knock_out_is_a_place_to_look_at_and_no_verdict():
    gains = [KnockoutGain(HEAD, 0.9, "zeroed"), KnockoutGain(MLP, 0.01, "zeroed")]
    diagnosis = judge(Observed([], {}, {}, -0.5, None, 24, []), FurtherLooks(lambda: gains, lambda: None))
    assert diagnosis.culprit.component == "unknown"
    assert (diagnosis.runner_up.component, diagnosis.runner_up.layer, diagnosis.runner_up.head) == ("head", 2, 1)
    assert list(diagnosis.evidence["knock_out"]) == ["head.2.1", "mlp.0"]


def test_worse_answers_that_nothing_explains_are_unknown():
    assert decide({MLP: 1.0}, swap=0.2).component == "unknown"
