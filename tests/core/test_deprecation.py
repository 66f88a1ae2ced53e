"""Every old public name works as the new one does, and says what the new one is."""

from __future__ import annotations

import dataclasses
import operator

import lvlm_guard_baselines
import lvlm_guard_controls
import pytest
import torch

import lvlm_guard
from lvlm_guard import AttentionCapture, AttentionEdit, HiddenEdit, Search
from lvlm_guard.call.report import StrategyReport
from lvlm_guard.strategy.generation import Generation, Services
from lvlm_guard.strategy.prompt import ModelInfo, Prompt

LAYERS = (0.0, 1.0)


def nothing(tensor, view):
    return tensor


@pytest.mark.parametrize(
    ("old", "new"), [("Probe", "AttentionCapture"), ("Decoder", "DecodingLoop"), ("Prefix", "PromptStates")]
)
def test_old_class_names(old, new):
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(lvlm_guard, old) is getattr(lvlm_guard, new)
    assert old not in lvlm_guard.__all__


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (lambda: AttentionEdit(LAYERS, "add", rows="blind"), "branch", "blind"),
        (lambda: AttentionCapture("mass", LAYERS, nothing, rows="blind"), "branch", "blind"),
        (lambda: HiddenEdit("mlp", nothing, rows="blind"), "branch", "blind"),
        (lambda: AttentionEdit(LAYERS, "add", keys="system"), "keys", "before_image"),
        (lambda: AttentionEdit(LAYERS, "add", keys="text"), "keys", "after_image"),
        (lambda: AttentionCapture("mass", LAYERS, nothing, keys="own"), "keys", "generated"),
        (lambda: AttentionEdit(LAYERS, "add", queries="decode"), "queries", "predicting"),
        (lambda: HiddenEdit("mlp", nothing, positions="decode"), "positions", "predicting"),
        (lambda: Search(nothing, alike=False), "shared_prompt", False),
        (lambda: StrategyReport("vcd", changed=2, positions=4, had_effect=True), "tokens_changed", 2),
    ],
)
def test_old_fields_and_values(make, field, value):
    with pytest.warns(DeprecationWarning, match=field) as caught:
        made = make()
    assert getattr(made, field) == value
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("value", "old", "new"),
    [
        (AttentionEdit(LAYERS, "add", branch="blind"), "rows", "branch"),
        (HiddenEdit("mlp", nothing), "rows", "branch"),
        (Search(nothing), "alike", "shared_prompt"),
        (StrategyReport("vcd", 2, 4, had_effect=True), "changed", "tokens_changed"),
        (StrategyReport("vcd", 2, 4, had_effect=True), "touched", "had_effect"),
    ],
)
def test_old_attributes(value, old, new):
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(value, old) == getattr(value, new)


OLD_FACTS = {
    "inputs": "prompt.inputs",
    "input_ids": "prompt.ids",
    "attention_mask": "prompt.attention_mask",
    "image_mask": "prompt.image_mask",
    "has_image": "prompt.has_image",
    "image_token": "prompt.image_token",
    "pictures": "prompt.pictures",
    "rows_per_request": "prompt.rows_per_request",
    "expansion": "prompt.rows_per_request",
    "config": "model.config",
    "tokenizer": "model.tokenizer",
    "depth": "model.depth",
    "heads": "model.heads",
    "tied": "model.tied_embeddings",
    "measure": "services.measure",
    "prefix": "prompt_states",
}


@pytest.fixture
def gen():
    ids = torch.arange(3)[None]
    prompt = Prompt({"input_ids": ids}, ids, ids > 0, ids > 1, True, 98, ("a picture",), 5)
    services = Services(measure=nothing, run_prompt=lambda branch: ("states", branch))
    return Generation(prompt, ModelInfo("a config", "a tokenizer", 32, 8, True), services=services)


@pytest.mark.parametrize(("old", "new"), OLD_FACTS.items())
def test_old_attributes_of_a_generation(gen, old, new):
    with pytest.warns(DeprecationWarning, match=new) as caught:
        value = getattr(gen, old)
    expected = operator.attrgetter(new)(gen)
    assert value is expected or value == expected
    assert caught[0].filename == __file__


def test_every_fact_of_a_generation_had_an_old_name_or_is_new(gen):
    facts = {f"{part}.{field.name}" for part in ("prompt", "model") for field in dataclasses.fields(getattr(gen, part))}
    assert facts - set(OLD_FACTS.values()) == {
        "model.digest_image_side",
        "model.digest_weights",
        "prompt.pictures_missing",
    }


def test_old_calls_of_a_generation(gen):
    with pytest.warns(DeprecationWarning, match="prompt_states"):
        assert gen.prefix("blind") == ("states", "blind")
    with pytest.warns(DeprecationWarning, match="call_user_function"):
        assert gen.consult(len, "four", what="counter", timeout=5.0) == 4


def test_new_names_warn_of_nothing(recwarn):
    AttentionEdit(LAYERS, "add", branch="blind", keys="after_image", queries="predicting")
    HiddenEdit("mlp", nothing, branch="blind", positions="predicting")
    assert [str(warning.message) for warning in recwarn] == []


def test_the_old_package_of_controls():
    for name in lvlm_guard_controls.__all__:
        with pytest.warns(DeprecationWarning, match="lvlm_guard_controls"):
            assert getattr(lvlm_guard_baselines, name) is getattr(lvlm_guard_controls, name)
