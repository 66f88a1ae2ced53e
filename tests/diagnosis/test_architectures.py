"""Measurements on tiny models of other architectures: what can be measured is sound, what cannot is said with its reason."""

from __future__ import annotations

import pytest
from known_items import draw_items, processor_of

from lvlm_guard.diagnosis import diagnose_model
from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.measuring import measure, measure_swap
from lvlm_guard.diagnosis.model.structure import inspect_structure
from lvlm_guard.fitting import Demonstration, encode_prompts
from lvlm_guard.testing import ARCHITECTURES, tiny
from lvlm_guard.testing.intact import fingerprint

BESIDE = {name for name in ARCHITECTURES if "mllama" in name}
"""Where the image stands beside the prompt."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sound_model_passes_what_is_measured(architecture):
    model, _ = tiny(architecture)
    items, processor = draw_items(4), processor_of(architecture)
    model.generate(**_prompts(model, processor, items), max_new_tokens=1)
    before, structure = fingerprint(model), inspect_structure(model)
    measured = measure(model, processor, structure, items)
    assert fingerprint(model) == before
    assert max(measured.sums.values(), default=0.0) < 1.0
    assert max(measured.leaks.values(), default=0.0) < 1e-6
    assert not any({**measured.biases, **measured.text_biases}.values())
    assert measured.logits is None or measured.logits < 1.0
    assert not measured.pixels
    reasons = " ".join((*structure.missing, *measured.missing))
    for name, is_measured in _list_measured(measured).items():
        assert is_measured or name in reasons, f"{name} is left out without a reason: {reasons!r}"


def _prompts(model, processor, items):
    return encode_prompts(
        model, processor, [Demonstration(item.picture, item.prompt, item.answer, "") for item in items]
    )


def _list_measured(measured):
    names = {component.name for component in measured.moments}
    return {
        "pixels": measured.pixels is not None,
        "tower": "tower" in names,
        "projector": "projector" in names,
        "attention": "head" in names,
        "blocks": bool(measured.sums),
        "output": measured.log_probability is not None,
    }


def test_a_model_that_reads_prompts_in_both_directions_is_said_to():
    model, _ = tiny("paligemma")
    measured = measure(model, processor_of("paligemma"), inspect_structure(model), draw_items(4))
    assert any("in both directions" in reason for reason in measured.missing)


def test_another_picture_moves_answers_of_packed_patches():
    model, _ = tiny("qwen2_vl")
    assert measure_swap(model, processor_of("qwen2_vl"), inspect_structure(model), draw_items(4)) > 1e-4


def test_without_a_profile_components_are_silenced_and_nothing_is_called_sound():
    model, _ = tiny("llava")
    diagnosis = diagnose_model(model, processor_of("llava"), draw_items(4))
    layers = len(model.model.language_model.layers)
    heads = model.config.text_config.num_attention_heads
    assert len(diagnosis.evidence["knock_out"]) == layers * (heads + 1)
    assert diagnosis.culprit.component == "unknown"
    assert any("without one" in reason for reason in diagnosis.partial)
    assert diagnosis.profile is None


def test_components_outside_the_decoder_have_no_layer_of_it():
    assert Component("projector").blame().layer is None
