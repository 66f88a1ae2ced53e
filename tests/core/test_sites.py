"""A site is the contribution of a block as it is added to the residual stream, the same in every decoder."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from odd_models import wrap_decoder
from torch import nn
from versions import need, specimen_of

from lvlm_guard import Guard, HiddenEdit, ModelRefused, hookimpl
from lvlm_guard.anatomy import decoder_layers
from lvlm_guard.testing import ARCHITECTURES, tiny

SETTINGS = {
    "max_new_tokens": 3,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}
DECODERS = {
    "granite": {"residual_multiplier": 0.22, "logits_scaling": 1.0},
    "cohere": {},
    "cohere2": {"head_dim": 8},
    "glm4": {"head_dim": 8, "partial_rotary_factor": 0.5},
    "gemma2": {"head_dim": 8},
    "olmo2": {},
    "phi": {},
    "gpt_neox": {},
    "gpt_neox sequential": {"use_parallel_residual": False},
    "stablelm": {"use_parallel_residual": True},
}
"""Scaled residuals, parallel blocks, norms before and behind them."""


@dataclass(frozen=True)
class Edits:
    name: ClassVar[str] = "edits"
    values: tuple[Any, ...]

    @hookimpl
    def hidden(self, gen):
        return self.values


def build(name):
    """A tiny model by its architecture, or a LLaVA around another decoder."""
    if name in DECODERS:
        return wrap_decoder(name.split()[0], DECODERS[name])
    need(name)
    return tiny(name)


def silence(model, site):
    """Zero what a block's last product gives, in every layer: nothing is left to be added."""
    marks = {"attention": ("Attention", "DeltaNet"), "mlp": ("MLP",)}[site]
    for layer in decoder_layers(model):
        for block in layer.children():
            if any(mark in type(block).__name__ for mark in marks):
                for part in block.modules():
                    if isinstance(part, nn.Linear) and part.out_features == 32:
                        nn.init.zeros_(part.weight)
                        if part.bias is not None:
                            nn.init.zeros_(part.bias)
    return model


def logits(output):
    return torch.stack(output.logits)


@pytest.mark.parametrize("site", ["attention", "mlp"])
@pytest.mark.parametrize("name", [*ARCHITECTURES, *DECODERS])
def test_a_contribution_times_0_is_a_layer_without_the_block(name, site):
    model, inputs = build(name)
    nothing = silence(copy.deepcopy(model), site).generate(**inputs, **SETTINGS)
    edit = HiddenEdit(site, lambda hidden, view: hidden * 0.0)
    edited = Guard(model, None, [Edits((edit,))]).generate(**inputs, **SETTINGS)
    assert (logits(nothing) - logits(model.generate(**inputs, **SETTINGS))).abs().max() > 0.1
    torch.testing.assert_close(logits(edited), logits(nothing), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_5", *DECODERS])
def test_what_edits_see_adds_up_to_what_a_layer_adds(name):
    model, inputs = build(name)
    seen = {}

    def keep(site):
        def edit(hidden, view):
            seen.setdefault((site, view.layer), hidden.clone())
            return hidden

        return HiddenEdit(site, edit, when="prefill")

    guard = Guard(model, None, [Edits(tuple(map(keep, ("attention", "mlp", "residual"))))])
    with pytest.warns(UserWarning, match="changed no logit"):
        guard.generate(**inputs, max_new_tokens=2, do_sample=False)
    for layer in (1, 2):
        added = seen["residual", layer] - seen["residual", layer - 1]
        total = seen["attention", layer] + seen["mlp", layer]
        assert added.abs().max() > 0.1
        torch.testing.assert_close(total, added, rtol=1e-4, atol=1e-3)


def test_an_edit_that_hands_back_what_it_got_changes_nothing_where_contributions_are_scaled():
    model, inputs = build("granite")
    plain = model.generate(**inputs, **SETTINGS)
    with pytest.warns(UserWarning, match="changed no logit"):
        guarded = Guard(model, None, [Edits((HiddenEdit("mlp", lambda hidden, view: hidden),))]).generate(
            **inputs, **SETTINGS
        )
    torch.testing.assert_close(logits(guarded), logits(plain), rtol=1e-5, atol=1e-5)


def test_a_layer_that_adds_something_else_is_refused():
    model, inputs = tiny("llava")
    layer = model.get_decoder().layers[1]
    plain = layer.forward

    def forward(hidden_states, **kwargs):
        return plain(hidden_states, **kwargs) + hidden_states.flip(-1)

    layer.forward = forward
    edit = HiddenEdit("mlp", lambda hidden, view: hidden * 0.5)
    with pytest.raises(ModelRefused, match="does not simply add its mlp block"):
        Guard(model, None, [Edits((edit,))]).generate(**inputs, max_new_tokens=2)
    assert not any(part._forward_hooks for part in model.get_decoder().layers.modules())
    Guard(model, None, [Edits((HiddenEdit("mlp", edit.edit, (0, 1)),))]).generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_an_edit_sees_the_input_of_the_block_itself(name):
    model, inputs = tiny(name)
    taken, seen = [], []
    block = model.get_decoder().layers[1].mlp
    edit = HiddenEdit("mlp", lambda hidden, view: seen.append(view.input) or hidden * 0.5, (1, 2), when="prefill")
    with block.register_forward_pre_hook(lambda _, args: taken.append(args[0])):
        Guard(model, None, [Edits((edit,))]).generate(**inputs, max_new_tokens=1, do_sample=False)
    assert len(seen) == 1
    assert torch.equal(seen[0], taken[-1])


@pytest.mark.parametrize("site", ["attention", "mlp"])
def test_a_feed_forward_that_is_no_module_of_its_own_is_a_block_too(site):
    specimen = specimen_of("blip-2")
    model, inputs = specimen.model, specimen.row()
    layers = model.language_model.model.decoder.layers
    silent = copy.deepcopy(model)
    for layer in silent.language_model.model.decoder.layers:
        last = layer.fc2 if site == "mlp" else layer.self_attn.out_proj
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    nothing, plain = (each.generate(**inputs, **SETTINGS) for each in (silent, model))
    taken, seen = [], []
    edit = HiddenEdit(site, lambda hidden, view: seen.append(view.input) or hidden * 0.0)
    first = layers[0].fc1 if site == "mlp" else layers[0].self_attn
    keep = first.register_forward_pre_hook(
        lambda _, args, kwargs: taken.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    output = Guard(model, None, [Edits((edit,))]).generate(**inputs, **SETTINGS)
    keep.remove()
    assert (logits(nothing) - logits(plain)).abs().max() > 0.1
    torch.testing.assert_close(logits(output), logits(nothing), rtol=1e-4, atol=1e-4)
    assert any(torch.equal(seen[0].flatten(), states.flatten()) for states in taken)
