"""What is recorded inside a model, against the model run plainly with attention maps and states returned."""

from __future__ import annotations

import pytest
import torch

from lvlm_guard import testbed
from lvlm_guard.diagnosis import load_known_items
from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.items import encode
from lvlm_guard.diagnosis.model.measuring import measure, measure_swap
from lvlm_guard.diagnosis.model.moments import Moments
from lvlm_guard.diagnosis.model.reading import find_lens, read_answers
from lvlm_guard.diagnosis.model.recording import compare_sum, record
from lvlm_guard.diagnosis.model.structure import inspect_structure
from lvlm_guard.testbed.suite import Scenes
from lvlm_guard.testing.intact import fingerprint


@pytest.fixture(scope="module")
def loaded():
    return testbed.load()


@pytest.fixture(scope="module")
def items():
    return load_known_items(Scenes(split="calibration", count=12, seed=3), 8)


@pytest.fixture(scope="module")
def encoded(loaded, items):
    return encode(*loaded, items)


@pytest.fixture(scope="module")
def recording(loaded, encoded):
    return record(loaded[0], inspect_structure(loaded[0]), encoded)


@pytest.fixture(scope="module")
def plain(loaded, encoded):
    """Outputs of the model run plainly, with attention maps and hidden states."""
    model = loaded[0]
    implementation = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.no_grad():
            return model(**encoded.inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
    finally:
        model.set_attn_implementation({"text_config": implementation})


def weigh(values, encoded):
    """Moments of values `[rows, length, dims]` at the positions that predict answers, each item alike."""
    weights = encoded.predicting.double() / encoded.predicting.sum(1, keepdim=True)
    return Moments.of(values, weights).stack()


def test_everything_of_the_bundled_model_is_measured(loaded, recording):
    structure = inspect_structure(loaded[0])
    assert structure.missing == ()
    assert structure.sums == tuple(range(8))
    inside = [Component(name, layer) for name in ("image_mass", "attention", "mlp") for layer in range(8)]
    heads = [Component("head", layer, head) for layer in range(8) for head in range(2)]
    outside = [Component("patches"), *(Component("tower", layer) for layer in range(4)), Component("projector")]
    assert set(recording.moments) == {*inside, *heads, *outside}


def test_attention_to_the_image_is_that_of_the_maps(loaded, encoded, recording, plain):
    image = encoded.inputs["input_ids"] == loaded[0].config.image_token_id
    for layer, attention in enumerate(plain.attentions):
        mass = (attention * image[:, None, None]).sum(-1).transpose(1, 2)
        assert torch.allclose(
            recording.moments[Component("image_mass", layer)].stack(), weigh(mass, encoded), atol=1e-5
        )
        assert float(mass[encoded.predicting].mean()) > 0.05, "no power"


@torch.no_grad()
def test_blocks_and_heads_are_those_of_the_layers(loaded, encoded, recording, plain):
    model = loaded[0]
    layer, states = model.model.language_model.layers[3], plain.hidden_states
    values = layer.self_attn.v_proj(layer.input_layernorm(states[3])).unflatten(-1, (2, 64)).transpose(1, 2)
    heads = plain.attentions[3] @ values
    for head in range(2):
        expected = weigh(heads[:, head], encoded)
        assert torch.allclose(recording.moments[Component("head", 3, head)].stack(), expected, atol=1e-4)
    added = layer.self_attn.o_proj(heads.transpose(1, 2).flatten(2))
    assert torch.allclose(recording.moments[Component("attention", 3)].stack(), weigh(added, encoded), atol=1e-4)
    mlp = states[4] - states[3] - added
    assert torch.allclose(recording.moments[Component("mlp", 3)].stack(), weigh(mlp, encoded), atol=1e-3)
    assert float(weigh(mlp, encoded)[0].norm()) > 1.0, "no power"


def test_image_tokens_are_those_that_enter_the_decoder(loaded, encoded, recording, plain):
    image = encoded.inputs["input_ids"] == loaded[0].config.image_token_id
    expected = Moments.of(plain.hidden_states[0][image]).stack()
    assert torch.allclose(recording.moments[Component("projector")].stack(), expected, atol=1e-4)


def test_the_tower_gets_the_pixels_of_the_processor(encoded, recording):
    assert recording.pixels
    assert all(torch.equal(pixels, encoded.inputs[encoded.pixels]) for pixels in recording.pixels)


def test_answers_are_read_as_the_model_says_them(loaded, encoded, recording, plain):
    lens, reason = find_lens(loaded[0], recording.last, recording.logits)
    assert reason == ""
    answers = read_answers(lens, recording.last, encoded)
    assert torch.allclose(answers.logits, plain.logits[encoded.predicting], atol=1e-3)
    assert answers.targets.tolist() == encoded.targets[encoded.predicting].tolist()
    chosen = plain.logits.log_softmax(-1).gather(2, encoded.targets[..., None])[..., 0]
    per_item = [row[where].mean() for row, where in zip(chosen, encoded.predicting, strict=True)]
    assert answers.log_probability == pytest.approx(float(torch.stack(per_item).mean()), abs=1e-4)


def test_exact_checks_hold_on_a_sound_model(loaded, items):
    measured = measure(*loaded, inspect_structure(loaded[0]), items)
    assert measured.pixels == 0.0
    assert max(measured.sums.values()) < 1.0
    assert max(measured.leaks.values()) == 0.0
    assert measured.logits < 1.0
    assert set(measured.biases) == set(range(8))
    assert {*measured.biases.values(), *measured.text_biases.values()} == {0.0}
    assert measured.missing == ()


def test_a_sum_that_is_off_by_more_than_rounding_shows():
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 8) for _ in range(3)]
    after = parts[0] + parts[1] + parts[2]
    assert compare_sum(after, parts) < 1.0
    after[1, 2, 4] += 1e-4
    assert compare_sum(after, parts) > 1.0


def test_another_picture_moves_answers(loaded, items):
    assert measure_swap(*loaded, inspect_structure(loaded[0]), items) > 0.05


def test_the_model_is_bit_identical_afterwards(loaded, items):
    model = loaded[0]
    before = fingerprint(model)
    measure(*loaded, inspect_structure(model), items)
    assert fingerprint(model) == before
