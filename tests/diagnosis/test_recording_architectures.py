"""What is recorded inside tiny models of several architectures, against the model run by itself on eager attention."""

from __future__ import annotations

import threading
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from known_items import draw_items, processor_of

from lvlm_guard import anatomy
from lvlm_guard.diagnosis import diagnose_model
from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.items import encode
from lvlm_guard.diagnosis.model.measuring import measure
from lvlm_guard.diagnosis.model.moments import Moments
from lvlm_guard.diagnosis.model.recording import record
from lvlm_guard.diagnosis.model.structure import inspect_structure
from lvlm_guard.testing import tiny
from lvlm_guard.testing.intact import fingerprint

ARCHITECTURES = ["llava", "qwen2_vl", "gemma3", "idefics3", "internvl"]
CLOSE = {"atol": 1e-4, "rtol": 1e-3}


def first(value):
    return value[0] if isinstance(value, tuple) else value


@torch.no_grad()
def run_by_hand(architecture, encoded):
    """Return the output of a model on eager attention, and what its parts were given and returned, by name and layer."""
    model, _ = tiny(architecture)
    model.set_attn_implementation("eager")
    kept = defaultdict(list)

    def keep(name):
        return lambda _, args, kwargs, output: kept[name].append(
            (args[0] if args else kwargs["hidden_states"], first(output))
        )

    handles = []
    for number, layer in enumerate(anatomy.decoder_layers(model)):
        attention, mlp = (anatomy.layer_part(layer, part) for part in ("attention", "mlp"))
        normed = architecture == "gemma3"  # what is added is normed once more
        parts = {
            "layer": layer,
            "heads": attention.o_proj,
            "attention": layer.post_attention_layernorm if normed else attention.o_proj,
            "mlp": layer.post_feedforward_layernorm if normed else mlp,
        }
        handles += [part.register_forward_hook(keep((name, number)), with_kwargs=True) for name, part in parts.items()]
    for number, layer in enumerate(anatomy.vision_layers(model)):
        handles.append(layer.register_forward_hook(keep(("tower", number)), with_kwargs=True))
    output = model(**encoded.inputs, use_cache=False, output_attentions=True)
    for handle in handles:
        handle.remove()
    return SimpleNamespace(model=model, output=output, kept=kept)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request):
    """One architecture: what was recorded, and the same by hand."""
    model, _ = tiny(request.param)
    encoded = encode(model, processor_of(request.param), draw_items(4))
    recording = record(model, inspect_structure(model), encoded)
    found = {component: moments.stack() for component, moments in recording.moments.items()}
    by_hand = run_by_hand(request.param, encoded)
    weights = encoded.predicting.double() / encoded.predicting.sum(1, keepdim=True)
    return SimpleNamespace(
        encoded=encoded, found=found, weights=weights, recording=recording, **vars(by_hand),
        image=encoded.inputs["input_ids"] == anatomy.image_token_id(model.config), depth=len(anatomy.decoder_layers(model)),
    )  # fmt: skip


def weigh(case, values):
    return Moments.of(values, case.weights).stack()


def agree(found, expected):
    assert float(expected[0].abs().max()) > 1e-3, "no power"
    torch.testing.assert_close(found, expected, **CLOSE)


def test_attention_to_the_image_is_that_of_eager_maps(case):
    for layer, attention in enumerate(case.output.attentions):
        mass = (attention * case.image[:, None, None]).sum(-1).transpose(1, 2)
        agree(case.found[Component("image_mass", layer)], weigh(case, mass))


def test_heads_are_what_the_output_projection_is_given(case):
    heads = len(case.output.attentions[0][0])
    for layer in range(case.depth):
        (given, _) = case.kept["heads", layer][0]
        for head, values in enumerate(given.unflatten(-1, (heads, -1)).unbind(2)):
            agree(case.found[Component("head", layer, head)], weigh(case, values))


def test_blocks_are_what_is_added(case):
    for layer in range(case.depth):
        (entered, left), (_, attention), (_, mlp) = (
            case.kept[name, layer][0] for name in ("layer", "attention", "mlp")
        )
        agree(case.found[Component("attention", layer)], weigh(case, attention))
        agree(case.found[Component("mlp", layer)], weigh(case, mlp))
        added = case.found[Component("attention", layer)][0] + case.found[Component("mlp", layer)][0]
        torch.testing.assert_close(added, weigh(case, left - entered)[0], **CLOSE)


def test_image_tokens_are_those_that_enter_the_decoder(case):
    (entered, _) = case.kept["layer", 0][0]
    agree(case.found[Component("projector")], Moments.of(entered[case.image]).stack())


def test_tower_layers_are_the_towers(case):
    depth = len(anatomy.vision_layers(case.model))
    for layer in range(depth):
        agree(case.found[Component("tower", layer)], _join(left for _, left in case.kept["tower", layer]))
    agree(case.found[Component("patches")], _join(given for given, _ in case.kept["tower", 0]))


def _join(parts):
    moments = [Moments.of(part) for part in parts]
    return sum(moments[1:], start=moments[0]).stack()


def test_answers_are_as_likely_as_the_models_logits_say(case, request):
    architecture = request.node.callspec.params["case"]
    model, _ = tiny(architecture)
    measured = measure(model, processor_of(architecture), inspect_structure(model), draw_items(4))
    chosen = case.output.logits.float().log_softmax(-1).gather(2, case.encoded.targets[..., None])[..., 0]
    expected = float((chosen * case.weights).sum() / case.weights.sum())
    assert measured.log_probability == pytest.approx(expected, abs=1e-4)
    assert expected < -0.1, "no power"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_bit_identical_after_a_diagnosis_and_threads_agree(architecture):
    model, _ = tiny(architecture)
    processor, items = processor_of(architecture), draw_items(3)
    expected = diagnose_model(model, processor, items).to_json()  # transformers leaves hooks of its own at first
    before, results = fingerprint(model), []
    threads = [
        threading.Thread(target=lambda: results.append(diagnose_model(model, processor, items).to_json()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected, expected]
    assert fingerprint(model) == before
