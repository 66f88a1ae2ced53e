"""The profile as a file: read as it was written, refused where it is another's."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch

from lvlm_guard.diagnosis import Profile, diagnose_model
from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.profile import hash_items
from lvlm_guard.errors import InputError, StrategyRefused
from lvlm_guard.strategy.artefacts import Artefact
from lvlm_guard.testing import tiny


@pytest.fixture(scope="module")
def file(profile, tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "sound.safetensors"
    profile.save(path)
    return path


def test_what_is_written_is_read_again(profile, file, sound):
    loaded = Profile.load(file, sound[0])
    assert loaded.facts == profile.facts
    assert set(loaded.norms) == set(profile.norms)
    for component, norm in profile.norms.items():
        assert torch.equal(loaded.norms[component].centre, norm.centre)
        assert (loaded.norms[component].usual, loaded.norms[component].deviation) == (norm.usual, norm.deviation)
    assert (loaded.swap, loaded.log_probability, loaded.failures) == (profile.swap, profile.log_probability, ())
    assert loaded.manifest["batteries"] == 26


def test_other_weights_of_the_same_sizes_are_compared_without_a_warning(file, sound):
    other = copy.deepcopy(sound[0])
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Profile.load(file, other)


def test_the_profile_of_a_model_of_other_sizes_is_refused(file):
    with pytest.raises(StrategyRefused, match=r"layers or sizes differ.*lvlm-guard diagnose profile"):
        Profile.load(file, tiny("llava")[0])


def test_a_profile_with_other_shapes_is_refused(sound, known, profile):
    norms = dict(profile.norms)
    norms[Component("head", 0, 0)] = norms[Component("mlp", 0)]
    with pytest.raises(StrategyRefused, match="head 0 of layer 0 has another shape"):
        diagnose_model(*sound, known[:24], profile=replace(profile, norms=norms))


def test_files_that_are_no_profiles_are_refused(sound, tmp_path, file):
    (tmp_path / "text").write_text("no profile")
    with pytest.raises(InputError, match="not an artefact"):
        Profile.load(tmp_path / "text", sound[0])
    with pytest.raises(InputError, match=r"There is no artefact.*diagnose profile"):
        Profile.load(tmp_path / "nowhere", sound[0])
    whole = Artefact.load(file, "profile", sound[0].config)
    lacking = {name: value for name, value in whole.manifest.items() if name != "components"}
    Artefact("profile", whole.tensors, lacking).save(tmp_path / "lacking")
    with pytest.raises(InputError, match="cannot read: KeyError: 'components'"):
        Profile.load(tmp_path / "lacking", sound[0])


def test_too_few_items_are_refused_beside_a_profile(sound, known, profile):
    with pytest.raises(InputError, match="at least 24 known items, got 23"):
        diagnose_model(*sound, known[:23], profile=profile)


def test_a_model_in_training_mode_is_refused(sound, known, profile):
    model = copy.deepcopy(sound[0]).train()
    with pytest.raises(InputError, match=r"Call model\.eval\(\) first"):
        diagnose_model(model, sound[1], known, profile=profile)


def test_items_are_known_by_their_words(known):
    assert hash_items(known) == hash_items(list(known))
    assert hash_items(known) != hash_items(known[::-1])


def test_evidence_is_plain_and_names_every_component(sound, known, profile):
    diagnosis = diagnose_model(*sound, known[:24], profile=profile)
    evidence = json.loads(diagnosis.to_json())["evidence"]
    assert set(evidence["scores"]) == {component.key for component in profile.norms}
    assert evidence["failed_checks"] == {}
    assert evidence["items"] == 24
