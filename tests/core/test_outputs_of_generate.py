"""Everything that generate can return has main's rows and width, whatever branches ran beside it."""

from __future__ import annotations

import warnings

import pytest
import torch
from gold import SUPPRESSED, Against
from versions import specimen_of

from lvlm_guard import Guard, NoEffectWarning
from lvlm_guard.testing import ARCHITECTURES, tiny

EVERYTHING = {
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True,
    "output_attentions": True,
}  # fmt: skip
MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "prompt lookup": {
        "prompt_lookup_num_tokens": 3,
        "max_matching_ngram_size": 1,
        "eos_token_id": SUPPRESSED[-1],  # 4.57 asks for an end token
    },
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
}
MODELS = (
    "llava",
    pytest.param("gemma3", marks=pytest.mark.slow),
    pytest.param("mllama", marks=pytest.mark.slow),
    "florence2",
)


def shape(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [shape(part) for part in value]
    if hasattr(value, "get_seq_length"):
        layers = [shape(getattr(layer, "keys", None)) for layer in getattr(value, "layers", [])]
        return int(value.get_seq_length()), layers
    return type(value).__name__


def build(name):
    model, inputs = tiny(name) if name in ARCHITECTURES else (None, None)
    if model is None:
        specimen = specimen_of(name)
        model, inputs = specimen.model, specimen.row()
    model.set_attn_implementation("eager")
    return model, inputs


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return request.param, *build(request.param)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["longer", "blind"])
@pytest.mark.parametrize("mode", MODES)
def test_every_output_has_mains_rows_and_width(case, kind, mode):
    name, model, inputs = case
    if (name, mode) == ("mllama", "prompt lookup"):
        pytest.skip("plain generate cannot do it")
    settings = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED, **MODES[mode], **EVERYTHING}
    torch.manual_seed(0)
    plain = model.generate(**inputs, **settings)
    shapes = {
        key: shape(value) for key, value in plain.items()
    }  # a static cache is the model's, and its next call empties it
    by_executor = {}
    for executor in ("auto", "sequential"):
        torch.manual_seed(0)
        guard = Guard(model, None, [Against(kind)], executor=executor)
        output = guard.generate(**inputs, **settings)
        by_executor[executor] = output, {key: shape(value) for key, value in output.items()}
        assert type(output) is type(plain)
        if output.sequences.shape == plain.sequences.shape and mode != "prompt lookup":
            assert by_executor[executor][1] == shapes
    (one, one_shape), (other, other_shape) = by_executor.values()
    assert one_shape == other_shape
    assert torch.equal(one.sequences, other.sequences)
    for name in ("attentions", "decoder_attentions", "hidden_states", "decoder_hidden_states", "beam_indices"):
        _compare(one.get(name), other.get(name))


def _compare(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.allclose(one.float(), other.float(), atol=1e-4)
    elif isinstance(one, tuple):
        for left, right in zip(one, other, strict=True):
            _compare(left, right)


def test_a_static_cache_of_a_longer_branch_leaves_that_of_later_calls_as_long_as_it_was():
    model, inputs = tiny("llava")
    settings = {
        "max_new_tokens": 3,
        "do_sample": False,
        "cache_implementation": "static",
        "return_dict_in_generate": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        Guard(model, None, [Against("longer")]).generate(**inputs, **settings)
    output = model.generate(**inputs, **settings)
    assert output.past_key_values.layers[0].keys.shape[-2] == output.sequences.shape[1] - 1
