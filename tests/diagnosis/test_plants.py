"""Planted faults: each is where it says, is undone, and is named by a diagnosis."""

from __future__ import annotations

import warnings

import pytest
import torch

from lvlm_guard.diagnosis import diagnose_model
from lvlm_guard.diagnosis.model.items import encode
from lvlm_guard.errors import InputError
from lvlm_guard.testbed.world.habits import CATEGORIES
from lvlm_guard.testing.intact import fingerprint
from lvlm_guard.testing.plants import KINDS, draw_plant, planted


def examples_of(sound, items):
    encoded = encode(*sound, items, swapped=True)
    return [(encoded.inputs, encoded.targets.masked_fill(~encoded.predicting, -100))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plant_changes_what_the_model_says_and_is_undone(sound, known, kind):
    model, processor = sound
    items = known[:4]
    encoded = encode(model, processor, items)

    def answer():
        with torch.no_grad():
            return model(**encoded.inputs, use_cache=False).logits[encoded.predicting]

    plain = answer()
    before = fingerprint(model)
    settings = model.generation_config.to_dict()
    plant = draw_plant(kind, 0, model, CATEGORIES)
    with planted(plant, model, processor, examples_of(sound, items)):
        faulty, changed_settings = answer(), model.generation_config.to_dict()
    assert fingerprint(model) == before
    assert torch.equal(answer(), plain)
    assert model.generation_config.to_dict() == settings
    if kind == "temperature":
        assert changed_settings != settings
    else:
        assert float((faulty - plain).abs().max()) > 0.1, "no power"


def test_a_plant_is_undone_after_an_error(sound):
    before = fingerprint(sound[0])
    with pytest.raises(ZeroDivisionError), planted(draw_plant("patches_zero", 1, sound[0]), *sound):
        raise ZeroDivisionError
    assert fingerprint(sound[0]) == before


def test_the_same_seed_draws_the_same_plant(sound):
    plants = [[draw_plant(kind, seed, sound[0], CATEGORIES) for kind in KINDS] for seed in (0, 0, 1)]
    assert plants[0] == plants[1] != plants[2]


def test_unknown_kinds_and_a_prior_without_examples_are_refused(sound):
    with pytest.raises(InputError, match="Did you mean 'yes_bias'"):
        draw_plant("yes_bia", 0, sound[0])
    plant = draw_plant("prior", 0, sound[0])
    with pytest.raises(InputError, match="pass some"), planted(plant, *sound):
        pass


NAMED = ("pictures_swapped", "patches_zero", "projector_mean", "image_masked", "head_copies", "mlp_bias_late", "residual_push", "yes_bias", "object_bias", "temperature")  # fmt: skip
SEED = 0


def diagnose(sound, items, profile):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return diagnose_model(*sound, items, profile=profile)


@pytest.mark.parametrize("kind", NAMED)
def test_a_diagnosis_names_what_was_planted(sound, known, profile, kind):
    plant = draw_plant(kind, SEED, sound[0], CATEGORIES)
    with planted(plant, *sound):
        diagnosis = diagnose(sound, known[:48], profile)
    culprit = diagnosis.culprit
    assert (culprit.stage, culprit.component, culprit.layer, culprit.head) == (
        plant.stage, plant.component, plant.layer, plant.head,
    )  # fmt: skip


def test_nothing_is_wrong_with_the_sound_model(sound, known, profile):
    before = fingerprint(sound[0])
    diagnosis = diagnose(sound, known, profile)
    assert diagnosis.culprit.component == "none"
    assert diagnosis.partial == ()
    assert diagnosis.profile == profile.facts
    assert fingerprint(sound[0]) == before


def test_a_diagnosis_is_deterministic(sound, known, profile):
    texts = {diagnose(sound, known[:24], profile).to_json() for _ in range(2)}
    assert len(texts) == 1
