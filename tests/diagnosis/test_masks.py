"""Masks hide keys or leave their scores alone: anything between is found exactly, however weak."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from lvlm_guard.diagnosis import diagnose_model
from lvlm_guard.diagnosis.model.masks import find_mask, measure_bias, noted_biases
from lvlm_guard.testbed.world.habits import CATEGORIES
from lvlm_guard.testing.plants import draw_plant, planted

LOWEST = torch.finfo(torch.float32).min


def make_mask(**places):
    mask = torch.zeros(2, 1, 4, 4).masked_fill(torch.ones(4, 4, dtype=torch.bool).triu(1), LOWEST)
    for (row, query, key), value in places.get("at", {}).items():
        mask[row, 0, query, key] = value
    return mask


@pytest.mark.parametrize("hidden", [LOWEST, float("-inf"), -1e4])
def test_a_mask_that_hides_adds_nothing(hidden):
    assert not measure_bias(make_mask(at={(0, 3, 1): hidden}), 4).any()


@pytest.mark.parametrize("bias", [-0.01, -3.0, 0.5])
def test_what_a_mask_adds_is_found_at_its_row_and_key(bias):
    found = measure_bias(make_mask(at={(1, 3, 2): bias}), 2)
    assert found.shape == (2, 4)
    assert found[1, 2] == pytest.approx(abs(bias))
    assert found.count_nonzero() == 1
    assert not measure_bias(make_mask(at={(1, 1, 0): bias}), 2).any(), "queries before the window do not count"


def test_only_masks_of_numbers_add():
    states, mask = torch.zeros(2, 4, 8), make_mask()
    assert find_mask((states,), {"attention_mask": mask}) is mask
    assert find_mask((states, mask), {}) is mask
    assert find_mask((states,), {"attention_mask": mask > -1}) is None
    assert find_mask((states,), {"attention_mask": torch.ones(2, 4)}) is None
    assert find_mask((states,), {}) is None


def test_hooks_are_gone_afterwards():
    module, biases = torch.nn.Linear(2, 2), {}
    with pytest.raises(ZeroDivisionError), noted_biases({0: module}, 4, biases):
        raise ZeroDivisionError
    assert not module._forward_pre_hooks


def weaken(sound, seed, strength):
    return replace(draw_plant("image_masked_weakly", seed, sound[0], CATEGORIES), strength=strength)


@pytest.mark.parametrize(("seed", "strength"), [(0, 0.05), (1, 1.0)])
def test_a_weak_mask_is_named_where_it_starts_even_without_a_profile(sound, known, seed, strength):
    plant = weaken(sound, seed, strength)
    with planted(plant, *sound), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnosis = diagnose_model(*sound, known[:8])
    culprit = diagnosis.culprit
    assert (culprit.stage, culprit.component, culprit.layer) == ("attention", "image_mass", plant.layer)
    assert culprit.score == pytest.approx(strength, rel=1e-3)


def test_a_sound_model_that_adds_to_scores_by_design_is_not_blamed(sound, known, profile):
    """As models do that bias attention by distance: the profile says that the check fails there too."""
    plant = weaken(sound, 2, 0.05)
    excusing = replace(profile, failures=tuple(f"image_mass.{layer}" for layer in range(plant.layer, plant.last)))
    with planted(plant, *sound), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnosis = diagnose_model(*sound, known[:48], profile=excusing)
    assert diagnosis.culprit.component == "none"
    assert any("the sound model fails this check too" in reason for reason in diagnosis.partial)
