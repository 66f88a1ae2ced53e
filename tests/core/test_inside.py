"""Edits, probes and readouts inside the layers, each against the same thing done by hand on the whole prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from against_twin import ARCHITECTURES, check
from twin import Twin
from versions import need

from lvlm_guard import (
    AttentionEdit,
    Branch,
    Contrast,
    Guard,
    HiddenEdit,
    InputError,
    Mix,
    ModelRefused,
    NoEffectWarning,
    PluginRejected,
    Readout,
    StrategyRefused,
    hookimpl,
)
from lvlm_guard.strategy.edits import AttentionCapture
from lvlm_guard.testing import tiny


@dataclass(frozen=True)
class Does:
    """A strategy put together from values."""

    name: ClassVar[str] = "does"
    attends: tuple[Any, ...] = ()
    hides: tuple[Any, ...] = ()
    reads: tuple[Any, ...] = ()
    splits: tuple[Any, ...] = ()
    says: Callable[..., Any] | None = None

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
    def branches(self, gen):
        return self.splits

    @hookimpl
    def terms(self, gen):
        return self.says(gen) if self.says else ()


def keys(twin, name, length):
    image, index = twin.image[:length], torch.arange(length)
    last = int(image.nonzero()[-1])
    return {
        "image": image,
        "before_image": (index < int(image.nonzero()[0])),
        "after_image": index > last,
        "generated": index >= twin.prompt,
        "all": torch.ones(length, dtype=torch.bool),
    }[name]


def queries(twin, name, length):
    index = torch.arange(length)
    last = int(twin.image.nonzero()[-1])
    return {"predicting": index >= twin.prompt - 1, "after_image": index > last, "all": index >= 0}[name]


OPERATIONS = {
    "add": ("scores", lambda x: x + 2.0, 2.0),
    "scale": ("scores", lambda x: x * 3.0, 3.0),
    "add_abs": ("scores", lambda x: x + 1.5 * x.abs(), 1.5),
    "mask": ("scores", lambda x: torch.full_like(x, -1e30), 1.0),
    "scale_probabilities": ("probabilities", lambda x: x * 0.2, 0.2),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("operation", "key_set", "query_set"), [
    ("add", "image", "predicting"), ("scale", "before_image", "after_image"), ("add_abs", "image", "predicting"),
    ("mask", "image", "after_image"), ("scale_probabilities", "after_image", "predicting"), ("add", "generated", "all"),
])  # fmt: skip
def test_attention_edits(architecture, operation, key_set, query_set):
    stage, change, amount = OPERATIONS[operation]

    def edited(twin):
        def edit(layer, tensor):
            if layer not in (1, 2):
                return tensor
            length = tensor.shape[-1]
            where = queries(twin, query_set, length)[:, None] & keys(twin, key_set, length)
            return torch.where(where, change(tensor), tensor)

        return edit

    def gold(model, inputs, prefix):
        twin = Twin(model)
        setattr(twin, stage, edited(twin))
        return twin.next(inputs, prefix), Twin(model).next(inputs, prefix)

    edit = AttentionEdit((1, 3), operation, amount, keys=key_set, queries=query_set)
    check([Does(attends=(edit,))], gold, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_head_gate_gates_its_head_alone(architecture):
    def gold(model, inputs, prefix):
        def gate(layer, outputs):
            if layer == 1:
                outputs = outputs.clone()
                outputs[:, 2, twin.prompt - 1 :] *= 0.1
            return outputs

        twin = Twin(model, outputs=gate)
        return twin.next(inputs, prefix), Twin(model).next(inputs, prefix)

    check([Does(attends=(AttentionEdit((1, 2), "gate_heads", 0.1, heads=(2,)),))], gold, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_probe_of_one_layer_steers_a_branch_in_later_ones(architecture):
    def reduce(probabilities, view):
        return probabilities.mean(1).masked_fill(~view.keys[:, None], 2.0)

    def mask(scores, view):
        seen = view.observed("mass", 0)
        weakest = view.spread(seen == seen.amin(-1, keepdim=True))
        return scores.masked_fill(view.fit(weakest)[:, None, -scores.shape[2] :], -1e30)

    def gold(model, inputs, prefix):
        def cut(layer, scores):
            if layer == 0:
                return scores
            seen = twin.seen[0].mean(1)[0].masked_fill(~twin.image, 2.0)
            weakest = seen == seen.amin(-1, keepdim=True)
            weakest[: twin.prompt - 1] = weakest[twin.prompt - 1]
            return scores.masked_fill(weakest, -1e30)

        twin = Twin(model, scores=cut)
        plain = Twin(model).next(inputs, prefix)
        return 2 * plain - twin.next(inputs, prefix), plain

    strategy = Does(
        splits=(Branch("blinkered", inside=True),),
        attends=(
            AttentionCapture("mass", (0, 1), reduce, branch="blinkered"),
            AttentionEdit((1, 3), mask, keys="image", queries="all", branch="blinkered"),
        ),
        says=lambda gen: [Contrast("blinkered", 1.0)],
    )
    check([strategy], gold, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("site", "positions"),
    [
        *(("mlp", positions) for positions in ("all", "predicting", "image")),
        ("residual", "predicting"),
        ("embedding", "image"),
        *(
            pytest.param(site, positions, marks=pytest.mark.slow)
            for site, positions in (
                ("residual", "all"),
                ("residual", "image"),
                ("embedding", "all"),
                ("embedding", "predicting"),
            )
        ),
    ],
)
def test_hidden_edits(architecture, site, positions):
    def moved(hidden):
        return 8 * hidden.flip(-1)

    def gold(model, inputs, prefix):
        def edit(hidden):
            length = hidden.shape[1]
            chosen = {
                "all": torch.ones(length) > 0,
                "predicting": queries(twin, "predicting", length),
                "image": twin.image,
            }
            return torch.where(chosen[positions][:, None], moved(hidden), hidden)

        twin = Twin(model)
        if site == "mlp":
            twin.mlp = lambda layer, given, out: edit(out) if layer else out
        elif site == "residual":
            twin.residual = lambda layer, hidden: edit(hidden) if layer else hidden
        else:
            twin.embedding = edit
        return twin.next(inputs, prefix), Twin(model).next(inputs, prefix)

    edit = HiddenEdit(site, lambda hidden, view: moved(hidden), layers=(1, 3), positions=positions)
    check([Does(hides=(edit,))], gold, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normed", [True, False])
def test_readouts(architecture, normed):
    readout = Readout((1, 2), final_norm=normed)

    def gold(model, inputs, prefix):
        twin = Twin(model)
        plain = twin.next(inputs, prefix)
        return plain + 0.5 * twin.lens(1, normed=normed) - 0.25 * twin.lens(2, normed=normed), plain

    def says(gen):
        first, second = gen.readouts(readout)
        return [Mix(first, 0.5), Mix(second, -0.25)]

    check([Does(reads=(readout,), says=says)], gold, architecture)


def test_a_count_and_a_fraction_that_are_equal_numbers_are_two_readouts():
    first, last = Readout((1,)), Readout((1.0,))
    seen = []

    def says(gen):
        seen.extend((gen.readouts(one), gen.statistics.layers(one)) for one in (first, last))
        return [Mix(gen.readouts(first)[0], 0.1)]

    model, inputs = tiny("llava")
    Guard(model, None, [Does(reads=(first, last), says=says)]).generate(**inputs, max_new_tokens=1, do_sample=False)
    for one, other in zip(*seen, strict=True):
        assert (one - other).abs().max() > 0.001


@pytest.mark.parametrize("branches", [(), (Branch("no image", image="removed"),)])
def test_inner_layers_are_read_along_with_the_last_one(branches):
    """One head product per decode step: a second one would read its weights again."""
    model, inputs = tiny("llava")
    readouts = (Readout((1, 2)), Readout((0, 2), final_norm=False))

    def says(gen):
        return [Mix(one, 0.1) for readout in readouts for one in gen.readouts(readout)]

    guard = Guard(model, None, [Does(reads=readouts, says=says, splits=branches)])
    guard.generate(**inputs, max_new_tokens=2, do_sample=False)
    rows = []
    with model.get_output_embeddings().register_forward_hook(lambda _, args, __: rows.append(args[0].shape[0])):
        guard.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    batch = inputs["input_ids"].shape[0]
    decode = batch * (1 + len(branches)) + 4 * batch
    assert rows[-3:] == [decode] * 3


def test_nothing_is_left_of_any_of_it():
    model, inputs = tiny("llava")
    config = model.get_decoder().config
    before = config._attn_implementation
    readout = Readout((1,))
    strategy = Does(
        attends=(AttentionEdit((0, 3), "add", 1.0),),
        hides=(HiddenEdit("mlp", lambda hidden, view: hidden * 2),),
        reads=(readout,),
    )
    Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=3, do_sample=False)
    assert config._attn_implementation == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.get_decoder().layers.modules())


def test_layers_without_attention_scores_are_refused():
    need("qwen3_5")
    model, inputs = tiny("qwen3_5")
    linear = [index for index, layer in enumerate(model.get_decoder().layers) if not hasattr(layer, "self_attn")]
    edit = AttentionEdit((linear[0], linear[0] + 1), "add", 1.0)
    with pytest.raises(ModelRefused, match="no attention that can be edited"):
        Guard(model, None, [Does(attends=(edit,))]).generate(**inputs, max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (Does(attends=(AttentionEdit((0, 9), "add", 1.0),)), "outside a decoder of 3 layers"),
        (Does(attends=(AttentionEdit((0, 1), "add", 1.0, heads=(4,)),)), "Head 4 lies outside a decoder of 4 heads"),
        (Does(reads=(Readout((4,)),)), "outside a decoder of 3 layers"),
        (Does(hides=(HiddenEdit("mlp", lambda hidden, view: hidden[:, :1, :3]),)), "returned"),
        (Does(attends=(AttentionEdit((0, 1), lambda scores, view: scores[:, :1]),)), "returned"),
        (Does(attends=(AttentionEdit((0, 1), "add", branch="nobody"),)), "no branch has that key"),
    ],
)
def test_bad_values_are_named_and_leave_nothing(strategy, words):
    model, inputs = tiny("llava")
    config = model.get_decoder().config
    before = config._attn_implementation
    with pytest.raises((InputError, PluginRejected), match=words):
        Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=2, do_sample=False)
    assert config._attn_implementation == before
    assert not any(part._forward_hooks for part in model.get_decoder().layers.modules())


def test_attention_that_cannot_be_delegated_to_is_refused():
    model, inputs = tiny("llava")
    model.get_decoder().config._attn_implementation = "flex_attention"
    with pytest.raises(ModelRefused, match="attn_implementation='sdpa'"):
        Guard(model, None, [Does(attends=(AttentionEdit((0, 1), "add", 1.0),))]).generate(**inputs, max_new_tokens=2)


def test_the_image_must_be_there():
    model, inputs = tiny("llava")
    text = {name: value[:, -6:] for name, value in inputs.items() if name != "pixel_values"}
    with pytest.raises(StrategyRefused, match="holds no image"):
        Guard(model, None, [Does(attends=(AttentionEdit((0, 1), "add", 1.0),))]).generate(**text, max_new_tokens=2)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_neutral_edit_is_what_the_models_own_attention_gives(implementation):
    model, inputs = tiny("gemma3")
    model.set_attn_implementation(implementation)
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **settings).logits
    edit = AttentionEdit((0.0, 1.0), "scale", 1.0, queries="all")
    with pytest.warns(NoEffectWarning):
        guarded = Guard(model, None, [Does(attends=(edit,))]).generate(**inputs, **settings).logits
    assert max(float((a - b).abs().max()) for a, b in zip(plain, guarded, strict=True)) <= 1e-5
