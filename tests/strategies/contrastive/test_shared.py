"""Strategies that look inside the layers: what holds for several of them."""

from __future__ import annotations

import math

import pytest
import torch
from lvlm_guard_contrastive import RITUAL, SID, AvisC
from versions import need

from lvlm_guard import Guard, GuardWarning, ModelRefused, StackError, StrategyRefused
from lvlm_guard.testing import tiny


@pytest.mark.parametrize("strategy", [SID(kept=0.5), AvisC(lam=0.2)])
def test_candidates_of_prompt_lookup_do_not_move_the_choice(strategy):
    model, inputs = tiny("llava")
    inputs = {**inputs, "input_ids": inputs["input_ids"].clone()}
    inputs["input_ids"][:, -6:] = inputs["input_ids"][:, -6:-3].repeat(1, 2)  # a prompt that repeats itself
    settings = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    lookup = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1, "eos_token_id": 104}
    guard = Guard(model, None, [strategy])
    greedy, looked = (guard.generate(**inputs, **settings, **more) for more in ({"eos_token_id": 104}, lookup))
    assert torch.equal(greedy.sequences, looked.sequences)
    for one, other in zip(greedy.logits, looked.logits, strict=False):
        assert float((one - other).abs().max()) <= 1e-4


@pytest.mark.parametrize("make", [
    lambda: SID(kept=0.0), lambda: SID(kept=1.0), lambda: SID(layer=1.0), lambda: SID(alpha=-1.0),
    lambda: AvisC(gamma=0.0), lambda: AvisC(lam=math.nan), lambda: RITUAL(kappa=math.inf),
    lambda: RITUAL(transforms=()), lambda: RITUAL(transforms=("shear",)),
])  # fmt: skip
def test_settings_out_of_range_are_named(make):
    model, _ = tiny("llava")
    with pytest.raises(StackError, match=r"(kept|layer|alpha|gamma|lam|kappa|transforms).*: "):
        Guard(model, None, [make()])


@pytest.mark.parametrize("strategy", [SID(), AvisC()])
@pytest.mark.parametrize("architecture", ["llava", "mllama"])
def test_a_prompt_with_nothing_to_choose_from_is_refused(strategy, architecture):
    model, inputs = tiny(architecture)
    if architecture == "llava":
        inputs = {name: inputs[name][:, -6:] for name in ("input_ids", "attention_mask")}
    with pytest.raises(StrategyRefused, match="image tokens"):
        Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=2)


@pytest.fixture
def hybrid():
    need("qwen3_5")
    return tiny("qwen3_5")


def test_a_layer_without_attention_is_refused_where_one_layer_chooses(hybrid):
    model, inputs = hybrid
    with pytest.raises(ModelRefused, match="no attention"):
        Guard(model, None, [SID()]).generate(**inputs, max_new_tokens=2)


def test_layers_without_attention_are_named_where_several_choose(hybrid):
    model, inputs = hybrid
    with pytest.warns(GuardWarning, match=r"Layers \[0, 1, 2\] of this model have no attention"):
        Guard(model, None, [AvisC()]).generate(**inputs, max_new_tokens=2)
