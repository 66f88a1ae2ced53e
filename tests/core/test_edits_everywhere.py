"""Edits inside the layers of decoders that are built otherwise: applied exactly, or an error; never dropped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from odd_models import CACHE, DECODERS, build, build_gemma4
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from versions import need, skip

from lvlm_guard import (
    AttentionEdit,
    Branch,
    Guard,
    GuardWarning,
    HiddenEdit,
    Mix,
    ModelRefused,
    Readout,
    hookimpl,
)
from lvlm_guard.anatomy import attention_configs, find_part
from lvlm_guard.forward.interventions.head_paths import observe_path
from lvlm_guard.strategy.edits import AttentionCapture
from lvlm_guard.testing import ARCHITECTURES, tiny

SETTINGS = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@dataclass(frozen=True)
class Does:
    name: ClassVar[str] = "does"
    attends: tuple[Any, ...] = ()
    hides: tuple[Any, ...] = ()
    reads: tuple[Any, ...] = ()

    @hookimpl
    def attention(self, gen):
        return self.attends

    @hookimpl
    def hidden(self, gen):
        return self.hides

    @hookimpl
    def readouts(self, gen):
        return self.reads

    @hookimpl
    def terms(self, gen):
        return [Mix(layer, 0.5) for readout in self.reads for layer in gen.readouts(readout)]


def make(name):
    if name == "gemma4":
        return build_gemma4()
    return build(name) if name in DECODERS else tiny(name)


def generate(model, inputs, strategy=None):
    run = model.generate if strategy is None else Guard(model, None, [strategy]).generate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuardWarning)
        return torch.stack(run(**inputs, **SETTINGS).logits)


def by_hand(model, inputs, tokens, hooks):
    """Logits that the whole prompt and the tokens give, with hooks of our own, every position kept in every layer."""
    ids = torch.cat([inputs["input_ids"], tokens], dim=1)
    more = tokens.shape[1]
    grown = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            grown[name] = nn.functional.pad(inputs[name], (0, more))
    with contextlib.ExitStack() as undo, torch.no_grad():
        for part, hook in hooks:
            undo.callback(part.register_forward_hook(hook).remove)
        return model(**grown, use_cache=False).logits[:, -1 - more :]


def check_by_hand(model, inputs, edit, hooks):
    strategy = Does(hides=(edit,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuardWarning)
        output = Guard(model, None, [strategy]).generate(**inputs, **SETTINGS)
    tokens = output.sequences[:, inputs["input_ids"].shape[1] : -1]
    plain, wanted = (by_hand(model, inputs, tokens, one) for one in ([], hooks))
    assert (wanted - plain)[:, 0].abs().max() > 0.05
    torch.testing.assert_close(torch.stack(output.logits, dim=1), wanted, rtol=1e-4, atol=1e-4)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def replaced(output, states):
    return (states, *output[1:]) if isinstance(output, tuple) else states


@pytest.mark.parametrize("name", [*ARCHITECTURES, *DECODERS, "gemma4"])
def test_a_neutral_attention_edit_gives_the_plain_logits(name):
    model, inputs = make(name)
    plain = generate(model, inputs)
    neutral = (
        AttentionEdit((0.0, 1.0), "scale", 1.0, queries="all"),
        AttentionEdit((0.0, 1.0), "scale_probabilities", 1.0, queries="all", renormalise=True),
        AttentionEdit((0.0, 1.0), "gate_heads", 1.0),
    )
    torch.testing.assert_close(generate(model, inputs, Does(attends=neutral)), plain, rtol=1e-4, atol=1e-4)
    masked = generate(model, inputs, Does(attends=(AttentionEdit((0.0, 1.0), "mask"),)))
    assert (masked - plain)[0].abs().max() > 0.05


def test_a_neutral_edit_leaves_out_what_the_attention_in_use_leaves_out(monkeypatch):
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def without_softcap(*args, softcap=None, **options):  # as it was before transformers 5.23
        return sdpa(*args, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", without_softcap)
    model, inputs = make("gemma2")
    neutral = AttentionEdit((0.0, 1.0), "scale", 1.0, queries="all")
    logits = {}
    for implementation in ("eager", "sdpa"):
        for config in attention_configs(model):
            config._attn_implementation = implementation
        logits[implementation] = generate(model, inputs)
        again = generate(model, inputs, Does(attends=(neutral,)))
        torch.testing.assert_close(again, logits[implementation], rtol=1e-5, atol=1e-5)
    assert (logits["eager"] - logits["sdpa"]).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "llama4_text", "gpt_oss", "deepseek_v3"])
def test_what_experts_add_is_edited_whatever_its_shape(name):
    model, inputs = make(name)
    layers = model.get_decoder().layers

    def halve(_part, _args, output):
        return replaced(output, first(output) * 0.5)

    hooks = [(find_part(layer, "mlp"), halve) for layer in layers[1:]]
    check_by_hand(model, inputs, HiddenEdit("mlp", lambda hidden, view: hidden * 0.5, (1, 3)), hooks)


@pytest.mark.parametrize("positions", ["all", "predicting", "after_image", "image"])
@pytest.mark.parametrize("layers", [(0, 2), (2, 4), (0, 4)])
def test_layers_that_share_keys_run_the_last_position_alone_and_are_edited_there(layers, positions):
    model, inputs = build_gemma4()
    image, prompt = inputs["input_ids"][0] == 100, inputs["input_ids"].shape[1]
    if positions == "image" and layers == (2, 4):
        pytest.skip("nothing depends on an image position in these layers")

    def flip(_part, _args, output):
        hidden = first(output)
        index = torch.arange(hidden.shape[1])
        shown = nn.functional.pad(image, (0, hidden.shape[1] - prompt))
        where = {
            "all": index >= 0,
            "predicting": index >= prompt - 1,
            "after_image": index > int(shown.nonzero()[-1]),
            "image": shown,
        }[positions]
        return replaced(output, torch.where(where[:, None], hidden.flip(-1), hidden))

    def edit(hidden, view):
        assert view.positions.shape == hidden.shape[:2] == view.image.shape
        return hidden.flip(-1)

    hooks = [(model.get_decoder().layers[index], flip) for index in range(*layers)]
    check_by_hand(model, inputs, HiddenEdit("residual", edit, layers, positions=positions), hooks)


def test_the_first_token_is_steered_by_attention_in_layers_that_run_the_last_position_alone():
    model, inputs = build_gemma4()
    plain = generate(model, inputs)
    masked = generate(model, inputs, Does(attends=(AttentionEdit((2, 4), "mask", queries="predicting"),)))
    assert (masked - plain)[0].abs().max() > 0.05


def test_captures_see_the_attention_of_layers_that_run_the_last_position_alone():
    model, inputs = build_gemma4()
    seen = {}

    def reduce(probabilities, view):
        seen[view.layer] = probabilities.shape
        return probabilities.sum(-1)

    generate(model, inputs, Does(attends=(AttentionCapture("sum", (0, 4), reduce, when="prefill"),)))
    assert set(seen.values()) == {(1, 4, 1, inputs["input_ids"].shape[1])}
    assert set(seen) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["kimi_linear", "qwen3_5"])
def test_a_range_over_interleaved_layers_edits_those_that_attend_and_says_so(name):
    need(name)
    model, inputs = make(name)
    depth = len(model.get_decoder().layers)
    attending = depth - 1
    whole, alone = (AttentionEdit(layers, "add", 3.0) for layers in ((0, depth), (attending, depth)))
    with pytest.warns(GuardWarning, match=rf"work on layers \[{attending}\] alone"):
        wide = Guard(model, None, [Does(attends=(whole,))]).generate(**inputs, **SETTINGS).logits
    narrow = Guard(model, None, [Does(attends=(alone,))]).generate(**inputs, **SETTINGS).logits
    assert torch.equal(torch.stack(wide), torch.stack(narrow))
    for layers in ((0, attending), (0, 1)):
        with pytest.raises(ModelRefused, match=rf"no attention that can be edited.*\[{attending}\]"):
            generate(model, inputs, Does(attends=(AttentionEdit(layers, "add", 3.0),)))


@pytest.mark.parametrize("name", ["granite", "cohere"])
def test_readouts_are_scaled_as_the_model_scales_and_not_as_its_config_states(name):
    model, inputs = make(name)
    states = []
    model.get_decoder().layers[0].register_forward_hook(lambda _part, _args, output: states.append(first(output)))
    plain = generate(model, inputs)
    with torch.no_grad():
        read = model.lm_head(model.get_decoder().norm(states[0][:, -1]))
    mixed = generate(model, inputs, Does(reads=(Readout((1,)),)))
    torch.testing.assert_close(mixed[0], plain[0] + 0.5 * read, rtol=1e-4, atol=1e-4)


def change_logits(model, change):
    """Let a model do something to its logits that no part of it and no setting shows."""
    plain = type(model).forward

    @functools.wraps(plain)
    def forward(self, *args, **kwargs):
        output = plain(self, *args, **kwargs)
        output["logits"] = change(output.logits)
        return output

    model.__class__ = type("Changed", (type(model),), {"forward": forward})


def test_readouts_are_scaled_as_the_model_scales_where_its_config_says_nothing():
    model, inputs = tiny("llava")
    change_logits(model, lambda logits: logits * 0.3)
    states = []
    model.get_decoder().layers[0].register_forward_hook(lambda _part, _args, output: states.append(first(output)))
    plain = generate(model, inputs)
    with torch.no_grad():
        read = model.lm_head(model.get_decoder().norm(states[0][:, -1])) * 0.3
    mixed = generate(model, inputs, Does(reads=(Readout((1,)),)))
    torch.testing.assert_close(mixed[0], plain[0] + 0.5 * read, rtol=1e-4, atol=1e-4)


def test_readouts_online_are_scaled_as_the_model_scales_from_the_first_call_on():
    model, inputs = tiny("llava")
    change_logits(model, lambda logits: logits * 0.3)
    plain = generate(model, inputs)
    online, later = (generate(model, inputs, Does(reads=(Readout((1,), online=way),))) for way in (True, False))
    torch.testing.assert_close(online, later, rtol=1e-5, atol=1e-5)
    assert (online - plain).abs().max() > 0.05


def test_running_a_model_to_find_its_head_leaves_its_rope_deltas():
    """Some versions overwrite them in every forward, and read them when they go on."""
    model, inputs = tiny("qwen2_vl")
    generate(model, inputs)
    deltas = model.model.rope_deltas
    assert deltas is not None
    overwrite = model.model.register_forward_hook(lambda part, *_: setattr(part, "rope_deltas", None))
    observe_path(model)
    assert model.model.rope_deltas is deltas
    overwrite.remove()


def test_readouts_are_refused_where_a_bias_stands_behind_the_head():
    model, inputs = tiny("llava")
    change_logits(model, lambda logits: logits + torch.arange(logits.shape[-1]) % 3)
    with pytest.raises(ModelRefused, match="differs from its logits by"):
        generate(model, inputs, WORK["readout"])


class Twice(nn.Module):
    """A layer that runs two times in each forward."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states, **kwargs):
        return self.inner(self.inner(hidden_states, **{**kwargs, CACHE: None}), **kwargs)


class Never(nn.Module):
    """A layer that passes on what it gets, without running what it holds."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states, **_):
        return hidden_states


class Streams(nn.Module):
    """A layer of two residual streams: it hands them on beside each other."""

    def __init__(self, inner, first=False, last=False):
        super().__init__()
        self.inner, self.first, self.last = inner, first, last

    def forward(self, hidden_states, **kwargs):
        streams = torch.stack([hidden_states] * 2) if self.first else hidden_states
        streams = torch.stack([self.inner(streams[0], **kwargs), streams[1]])
        return streams.mean(0) if self.last else streams


WORK = {
    "residual": Does(hides=(HiddenEdit("residual", lambda hidden, view: hidden * 2, (1, 2)),)),
    "attention": Does(attends=(AttentionEdit((1, 2), "add", 3.0),)),
    "capture": Does(attends=(AttentionCapture("sum", (1, 2), lambda probabilities, view: probabilities),)),
    "readout": Does(reads=(Readout((2,)),)),
}


@pytest.mark.parametrize("work", ["attention", "capture"])
def test_attention_that_a_layer_does_not_run_is_refused(work):
    model, inputs = tiny("llava")
    model.get_decoder().layers[1] = Never(model.get_decoder().layers[1])
    with pytest.raises(ModelRefused, match=r"Layers \[1\] of this model have no attention"):
        generate(model, inputs, WORK[work])


@pytest.mark.parametrize("edit", [HiddenEdit("residual", lambda hidden, view: hidden * 2, (1, 3)), Readout((3,))])
def test_layers_that_a_forward_leaves_out_are_an_error(edit):
    model, inputs = tiny("llava")
    model.get_decoder().config.num_hidden_layers = 2
    strategy = Does(reads=(edit,)) if isinstance(edit, Readout) else Does(hides=(edit,))
    with pytest.raises(ModelRefused, match=r"did not run what .* layers \[[23]\]"):
        generate(model, inputs, strategy)


@pytest.mark.parametrize("work", ["attention", "capture"])
def test_attention_that_runs_more_than_once_in_a_forward_is_an_error(work):
    model, inputs = tiny("llava")
    model.get_decoder().layers[1] = Twice(model.get_decoder().layers[1])
    with pytest.raises(ModelRefused, match="more than once in a forward"):
        generate(model, inputs, WORK[work])


@pytest.mark.parametrize("work", list(WORK))
def test_one_layer_in_two_places_is_an_error(work):
    model, inputs = tiny("llava")
    model.get_decoder().layers[1] = model.get_decoder().layers[0]
    with pytest.raises(ModelRefused, match=r"more than once in a forward|no attention that can be edited"):
        generate(model, {**inputs, "use_cache": False}, WORK[work])


@pytest.mark.parametrize("work", ["residual", "readout"])
def test_several_residual_streams_are_refused_and_not_mistaken_for_rows(work):
    model, inputs = tiny("llava")
    layers = model.get_decoder().layers
    wrapped = [Streams(layer, index == 0, index == len(layers) - 1) for index, layer in enumerate(layers)]
    for index, layer in enumerate(wrapped):
        layers[index] = layer
    with pytest.raises(ModelRefused, match="can be neither edited nor read"):
        generate(model, inputs, WORK[work])


def test_attention_that_adds_a_term_of_its_own_is_refused():
    """What the model runs as its eager attention adds a slope that no argument tells of."""
    model, inputs = tiny("llava")
    model.set_attn_implementation("eager")
    attention = type(model.get_decoder().layers[1].self_attn)
    written = inspect.unwrap(attention.forward)
    names = dict(written.__globals__)
    plain = names["eager_attention_forward"]

    def sloped(module, query, key, value, attention_mask, **kwargs):
        slope = torch.arange(key.shape[-2]).to(query) * 0.1
        return plain(module, query, key, value, attention_mask + slope, **kwargs)

    names["eager_attention_forward"] = sloped
    forward = types.FunctionType(written.__code__, names, closure=written.__closure__)
    for layer in model.get_decoder().layers:
        layer.self_attn.__class__ = type("SlopedAttention", (attention,), {"forward": forward})
    with pytest.raises(ModelRefused, match="computes its attention in a way of its own"):
        generate(model, inputs, WORK["attention"])


def test_a_vision_layer_that_does_not_run_on_the_image_is_an_error():
    model, inputs = tiny("llava")
    tower = next(part for part in model.modules() if type(part).__name__ == "CLIPEncoder")
    answers = []
    with tower.layers[1].register_forward_hook(lambda *called: answers.append(called[-1])):
        generate(model, inputs)
    tower.layers[1].forward = lambda hidden, *_, **__: replaced(answers[0], hidden)
    edit = HiddenEdit("mlp", lambda hidden, view: hidden * 2, (0, 2), tower="vision")
    with pytest.raises(ModelRefused, match=r"Layers \[1\] of the vision tower of .* did not run"):
        generate(model, inputs, Does(hides=(edit,)))


def test_an_edit_of_a_vision_layer_whose_output_is_kept_before_is_refused():
    """A tower that puts another forward into its layers while it runs keeps what no hook has edited."""
    model, inputs = tiny("llava")
    tower = next(part for part in model.modules() if type(part).__name__ == "CLIPEncoder")
    layer, run = tower.layers[0], tower.forward

    @functools.wraps(run)
    def keep(*args, **kwargs):
        whole = layer.forward
        layer.forward = functools.partial(whole)
        try:
            return run(*args, **kwargs)
        finally:
            del layer.forward

    tower.forward = keep
    edit = HiddenEdit("residual", lambda hidden, view: hidden.flip(-1), (0, 1), tower="vision")
    with pytest.raises(ModelRefused, match="kept before it is edited"):
        generate(model, inputs, Does(hides=(edit,)))


@dataclass(frozen=True)
class Blind(Does):
    """Asks for a branch without the image, too."""

    @hookimpl
    def branches(self, gen):
        return [Branch("blind", image="removed")]


def test_a_vision_edit_of_a_branch_without_its_image_is_an_error():
    model, inputs = tiny("llava")
    edit = HiddenEdit("mlp", lambda hidden, view: hidden * 2, tower="vision", branch="blind")
    with pytest.raises(ModelRefused, match="did not run on the image of the rows"):
        generate(model, inputs, Blind(hides=(edit,)))


def test_layers_that_a_branch_leaves_out_may_be_edited_in_main():
    """Without an image, layers that attend to it alone do not run."""
    model, inputs = tiny("mllama")
    edit = AttentionEdit((0.0, 1.0), "scale", 3.0)
    plain = generate(model, inputs)
    edited = generate(model, inputs, Does(attends=(edit,)))
    assert (edited - plain).abs().max() > 0.05
    torch.testing.assert_close(generate(model, inputs, Blind(attends=(edit,))), edited, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelRefused, match=r"did not run what is edited in layers \[1\]"):
        generate(model, inputs, Blind(attends=(dataclasses.replace(edit, branch="blind"),)))


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_a_vision_edit_reaches_the_layer_whose_output_the_model_goes_on_with(name):
    """Models that read an inner layer of their tower have hooks of their own that keep its output, from its first run on."""
    model, inputs = tiny(name)
    plain = generate(model, inputs)
    edit = HiddenEdit("residual", lambda hidden, view: hidden.flip(-1), (0, 1), tower="vision")
    try:
        edited = generate(model, inputs, Does(hides=(edit, edit, edit)))
    except ModelRefused as error:
        skip(f"a tower it keeps layers of: {error}")
    tower = next(part for part in model.modules() if type(part).__name__ == "CLIPEncoder")
    whole = tower.layers[0].forward

    def flipped(*args, **kwargs):
        output = whole(*args, **kwargs)
        return replaced(output, first(output).flip(-1))

    tower.layers[0].forward = flipped
    wanted = generate(model, inputs)
    assert (wanted - plain).abs().max() > 0.05
    torch.testing.assert_close(edited, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("work", "most"),
    [
        (Does(hides=(HiddenEdit("residual", lambda hidden, view: hidden),)), 0),
        (Does(hides=(HiddenEdit("mlp", lambda hidden, view: hidden),)), 1),
        (Does(attends=(AttentionEdit((0.0, 1.0), "scale", 1.0),)), 2),
        (Does(reads=(Readout((1,)),)), 0),
    ],
)
def test_what_is_found_by_running_the_decoder_is_found_once(work, most):
    model, inputs = tiny("llava")
    ran = []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda *_: ran.append(1))
    counts = []
    for _ in range(2):
        ran.clear()
        generate(model, inputs, work)
        counts.append(len(ran))
    assert counts == [SETTINGS["max_new_tokens"] + most, SETTINGS["max_new_tokens"]]
