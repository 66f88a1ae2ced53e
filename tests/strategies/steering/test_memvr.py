"""(1 - ratio) FFN(x) + ratio s (x V^T) V after the first layer whose uncertainty exceeds the threshold."""

from __future__ import annotations

import math

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from lvlm_guard_layers import SLA
from lvlm_guard_steering import MemVR
from twin import Twin

from lvlm_guard import Guard, InputError, PluginRejected, Stack, StackError, StrategyRefused
from lvlm_guard.testing import tiny
from lvlm_guard.testing.tiny import inputs_for

EVERY = (0.0, 1.0)


def uncertainty(logits):
    best = logits.double().sort(descending=True).values[:10].softmax(-1)
    return float(-(best * best.log()).sum()) / math.log(10)


def retrace(model, inputs, prefix, *, first, threshold, ratio, triggers):
    """The twin and its logits with the image mixed in by hand; `first` is the first layer that may trigger."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    fired = {}

    def keep(hidden):
        twin.kept = hidden
        return hidden

    def mlp(layer, given, output):
        if layer <= first:
            return output
        edited = output.clone()
        said = head(decoder.norm(twin.hidden[layer]))[0]
        image = twin.kept[0, twin.image]
        for position in range(twin.prompt - 1, output.shape[1]):
            if position in fired or uncertainty(said[position]) <= threshold:
                continue
            fired[position] = layer
            for place in range(position + 1) if position == twin.prompt - 1 else [position]:
                x, ffn = given[0, place], output[0, place]
                retrace = sum((x @ token) * token for token in image)
                retrace = retrace * ffn.abs().mean() / retrace.abs().mean()
                edited[0, place] = (1 - ratio) * ffn + ratio * retrace
        return edited

    twin = Twin(model, mlp=mlp, embedding=keep)
    logits = twin.next(inputs, prefix)
    triggers.extend(fired.get(place) for place in range(twin.prompt - 1, twin.prompt + len(prefix)))
    return twin, logits


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize(
    ("settings", "first", "threshold", "ratio"),
    [
        ({"threshold": 0.0, "ratio": 0.5}, 1, 0.0, 0.5),
        ({"threshold": 0.985, "ratio": 0.9, "layers": EVERY}, 0, 0.985, 0.9),
    ],
    ids=["published layers", "every layer"],
)
def test_memvr(architecture, settings, first, threshold, ratio):
    triggers = []

    def gold(model, inputs, prefix):
        _, edited = retrace(model, inputs, prefix, first=first, threshold=threshold, ratio=ratio, triggers=triggers)
        return edited, Twin(model).next(inputs, prefix)

    check([MemVR(**settings)], gold, architecture)
    found = {layer: triggers.count(layer) for layer in set(triggers)}
    print(f"triggered before layer: {found}")
    if settings.get("layers"):
        assert len(found) > 1, "one and the same layer triggers everywhere, so the once-only rule is not tested"


@pytest.mark.parametrize("reverse", [False, True])
def test_readouts_of_others_see_what_was_retraced(reverse):
    def gold(model, inputs, prefix):
        asked = {"first": 0, "threshold": 0.985, "ratio": 0.9, "triggers": []}
        twin, edited = retrace(model, inputs, prefix, **asked)
        return 0.5 * edited + 0.25 * (twin.lens(1) + twin.lens(2)), Twin(model).next(inputs, prefix)

    stack = [MemVR(ratio=0.9, threshold=0.985, layers=EVERY), SLA(gamma=0.5, layers=(1 / 3, 2 / 3))]
    check(stack[::-1] if reverse else stack, gold, "llava")


class TestMemVR(BundledContract):
    strategy = MemVR(ratio=0.5, threshold=0.3, layers=EVERY)


def test_rows_that_are_sure_are_left_alone():
    model, inputs = tiny("llava")
    calls = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**inputs, **calls)
    with pytest.warns(UserWarning, match="memvr"):
        guarded = Guard(model, None, [MemVR(threshold=1.0)]).generate(**inputs, **calls)
    assert all(torch.equal(one, other) for one, other in zip(plain.logits, guarded.logits, strict=True))


def test_no_image_is_refused():
    model, inputs = tiny("llava")
    text = {name: value[:, -6:] for name, value in inputs.items() if name != "pixel_values"}
    with pytest.raises(StrategyRefused, match="'memvr' needs image tokens in the prompt"):
        Guard(model, None, [MemVR()]).generate(**text, max_new_tokens=2, do_sample=False)


def test_one_layer_is_refused():
    model, inputs = tiny("llava")
    decoder = model.get_decoder()
    decoder.layers, decoder.config.num_hidden_layers = decoder.layers[:1], 1
    with pytest.raises(StrategyRefused, match=r"'memvr' needs a layer that another one of 1 follows: change layers="):
        Guard(model, None, [MemVR()]).generate(**inputs, max_new_tokens=2, do_sample=False)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in decoder.layers.modules())


def test_a_row_without_image_is_left_alone():
    model, inputs = tiny("llava")
    other = inputs_for("llava", model, text=6, seed=5)
    text = torch.where(other["input_ids"] == 100, 7, other["input_ids"])
    batch = {
        "input_ids": torch.cat([inputs["input_ids"], text]),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(text)]),
        "pixel_values": inputs["pixel_values"],
    }
    calls = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**batch, **calls)
    guarded = Guard(model, None, [MemVR(ratio=0.9, threshold=0.0, layers=EVERY)]).generate(**batch, **calls)
    difference = (plain.logits[0] - guarded.logits[0]).abs().amax(-1)
    assert difference[0] > 0.1
    assert difference[1] <= 1e-5


@pytest.mark.parametrize(
    "params", [{"ratio": 1.5}, {"threshold": -0.1}, {"layers": [0.1]}, {"layers": [0.1, 5.0]}, {"ratio": float("nan")}]
)
def test_values_outside_their_range_are_named(params):
    with pytest.raises((StackError, InputError, PluginRejected), match=next(iter(params))):
        Stack.of([{"name": "memvr", "params": params}])
