"""Layer contrasts: what holds for several of them."""

from __future__ import annotations

import pytest
import torch
from lvlm_guard_layers import SLA, DeCo, DoLa
from shallow import check_refusal, make_shallow

from lvlm_guard import Guard, InputError, ModelRefused, PluginRejected, Stack, StackError
from lvlm_guard.testing import tiny


@pytest.mark.parametrize("strategy", [DeCo(), SLA()])
def test_one_layer_is_its_own_inner_layer(strategy):
    model, inputs = make_shallow(1)
    output = Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(output, model.generate(**inputs, max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("strategy", [DoLa(), DeCo(), SLA()])
def test_a_model_with_something_between_norm_and_head_is_refused(strategy):
    def bend(_module, _args, output):
        output.last_hidden_state = output.last_hidden_state.flip(-1)

    model, inputs = tiny("llava")
    model.model.register_forward_hook(bend)
    check_refusal(model, inputs, strategy, ModelRefused, "differs from its logits")


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("dola", {"layers": [2.0]}, "layers"),
        ("dola", {"layers": "middle"}, "layers"),
        ("dola", {"weight": -1.0}, "weight"),
        ("deco", {"layers": []}, "layers"),
        ("deco", {"layers": [1.5]}, "layers"),
        ("deco", {"top_k": 0}, "top_k"),
        ("sla", {"gamma": 1.5}, "gamma"),
    ],
)
def test_values_outside_their_range_are_named(name, params, words):
    with pytest.raises((StackError, InputError, PluginRejected), match=words):
        Stack.of([{"name": name, "params": params}])
