"""A hidden edit that only observes changes nothing, wherever it looks and whatever it returns."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from evidence_heads import image_features
from looks import BOTH

from lvlm_guard import AttentionEdit, Generation, Guard, HiddenEdit, InputError, NoEffectWarning, hookimpl
from lvlm_guard.anatomy import vision_layers
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import left_padded
from lvlm_guard.testing.tiny import inputs_for

SETTINGS = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@dataclass(frozen=True)
class Looks:
    """Keep hidden states at a site, and return others."""

    site: str = "embedding"
    positions: str = "image"
    when: str = "prefill"
    receive: Any = None

    @hookimpl
    def hidden(self, gen: Generation):
        def look(hidden, view):
            if self.receive is not None:
                self.receive(hidden[view.positions])
            return hidden * 0 + 7

        layers = (1, 2) if self.site != "embedding" else (0.0, 1.0)
        yield HiddenEdit(
            self.site, look, layers, positions=self.positions, when=self.when, depends_on_end=False, observes=True
        )


@pytest.mark.parametrize("architecture", BOTH)
@pytest.mark.parametrize(
    ("site", "positions", "when"),
    [
        ("embedding", "image", "prefill"),
        ("residual", "image", "prefill"),
        ("residual", "all", "both"),
        ("mlp", "predicting", "decode"),
        ("attention", "after_image", "both"),
    ],
)
def test_it_changes_nothing_and_needs_no_effect(architecture, site, positions, when):
    model, _ = tiny(architecture)
    batch = left_padded([inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6)])
    calls = []
    guard = Guard(model, None, [Looks(site, positions, when, calls.append)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        guarded = guard.generate(**batch, **SETTINGS)
    plain = model.generate(**batch, **SETTINGS)
    assert calls, "no power: it looked at nothing"
    assert torch.equal(guarded.sequences, plain.sequences)
    assert all(torch.equal(*pair) for pair in zip(guarded.logits, plain.logits, strict=True))
    assert not guard.report.strategies[0].had_effect


@pytest.mark.parametrize("architecture", BOTH)
def test_it_sees_the_image_tokens_that_enter_the_decoder(architecture):
    model, _ = tiny(architecture)
    singles = [inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6, 11)]
    seen: list[Any] = []
    Guard(model, None, [Looks(receive=seen.append)]).generate(**left_padded(singles), **SETTINGS)
    expected = torch.cat([image_features(model, inputs)[0] for inputs in singles])
    assert torch.allclose(seen[0], expected, atol=1e-5)
    assert float(expected.std()) > 0.01


@dataclass(frozen=True)
class Attends:
    """Keep attention or head outputs of a layer, and return others."""

    stage: str = "outputs"
    receive: Any = None

    @hookimpl
    def attention(self, gen: Generation):
        def look(values, view):
            self.receive(values)
            return values * 0 + 7

        yield AttentionEdit((1, 2), look, queries="all", stage=self.stage, observes=True)


@pytest.mark.parametrize("architecture", BOTH)
@pytest.mark.parametrize("stage", ["scores", "probabilities", "outputs"])
def test_an_attention_edit_that_observes_changes_nothing(architecture, stage):
    model, _ = tiny(architecture)
    batch = left_padded([inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6)])
    seen: list[Any] = []
    guard = Guard(model, None, [Attends(stage, seen.append)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        guarded = guard.generate(**batch, **SETTINGS)
    plain = model.generate(**batch, **SETTINGS)
    assert len(seen) == SETTINGS["max_new_tokens"], "no power: it looked at nothing"
    assert torch.equal(guarded.sequences, plain.sequences)
    assert all(torch.equal(*pair) for pair in zip(guarded.logits, plain.logits, strict=True))


def test_named_operations_do_not_observe():
    with pytest.raises(InputError, match="observes by a function"):
        AttentionEdit((0, 1), "mask", observes=True)
    with pytest.raises(InputError, match="must be True or False"):
        AttentionEdit((0, 1), lambda values, _: values, observes=1)


@dataclass(frozen=True)
class Sees:
    """Keep what the layers of the tower return, and return others."""

    receive: Any = None

    @hookimpl
    def hidden(self, gen: Generation):
        def look(hidden, view):
            self.receive((view.layer, hidden.clone()))
            return hidden * 0 + 7

        yield HiddenEdit("residual", look, tower="vision", observes=True)


@pytest.mark.parametrize("architecture", BOTH)
def test_it_changes_nothing_in_the_vision_tower(architecture):
    model, _ = tiny(architecture)
    batch = inputs_for(architecture, model, 1, text=3)
    seen: list[Any] = []
    guard = Guard(model, None, [Sees(seen.append)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        guarded = guard.generate(**batch, **SETTINGS)
    plain = model.generate(**batch, **SETTINGS)
    assert {layer for layer, _ in seen} == set(range(len(vision_layers(model))))
    assert all(float(hidden.std()) > 0.0 for _, hidden in seen), "no power"
    assert all(torch.equal(*pair) for pair in zip(guarded.logits, plain.logits, strict=True))
