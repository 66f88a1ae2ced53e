"""A row that depends on the batch it is in is decoded by itself; found by what the model does, not by what it is called."""

import pytest
import torch
import transformers
from gold import Against
from torch import nn

from lvlm_guard import Guard, ModeRefused
from lvlm_guard.testing.intact import BoomError, fingerprint
from lvlm_guard.testing.tiny import tiny

SETTINGS = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
DETAILS = {"output_logits": True, "return_dict_in_generate": True}


class Rounded(nn.Module):
    """A linear layer whose input is rounded to 8 bits, with one scale for the whole batch or one for each token."""

    def __init__(self, inner: nn.Linear, dimensions: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.dimensions = inner, dimensions

    def forward(self, hidden):
        return self.inner(rounded(hidden, self.dimensions))


def rounded(hidden, dimensions):
    scale = hidden.abs().amax(dimensions, keepdim=True).clamp(min=1e-6) / 127
    return (hidden / scale).round() * scale


def by_layers(model, dimensions):
    for layer in model.get_decoder().layers:
        layer.mlp.down_proj = Rounded(layer.mlp.down_proj, dimensions)
    return model


def by_hooks(model, dimensions):
    for layer in model.get_decoder().layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: rounded(inputs[0], dimensions))
    return model


def by_room(model, _):
    """Experts with room for half of all tokens: the first ones take it, the others pass on nothing."""

    def leave_out(_, __, output):
        chosen = (output[..., 0] > 0).flatten()
        place = torch.where(chosen, chosen.cumsum(0), (~chosen).cumsum(0))
        return output * (place <= (len(chosen) + 1) // 2).view(*output.shape[:-1], 1)

    for layer in model.get_decoder().layers:
        layer.mlp.register_forward_hook(leave_out)
    return model


def by_torch(model, _):
    quantisation = pytest.importorskip("torch.ao.quantization")
    return quantisation.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore")  # torch announces the end of its own quantisation; users still have it
@pytest.mark.parametrize(
    ("quantise", "dtype"),
    [
        (by_layers, torch.float32),
        (by_layers, torch.bfloat16),
        (by_hooks, torch.bfloat16),
        (by_torch, torch.float32),
        (by_room, torch.float32),
    ],
)
@pytest.mark.parametrize("kind", ["noised", "longer"])
def test_rows_that_see_the_whole_batch_are_decoded_one_by_one(quantise, kind, dtype):
    model, inputs = tiny("llava")
    model = quantise(model.to(dtype), (0, 1, 2))
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    guard = Guard(model, None, [Against(kind)])
    guarded = guard.generate(**inputs, **SETTINGS, **DETAILS)
    assert (guard.report.executor, guard.report.strategies[0].had_effect) == ("sequential", True)
    assert "depends on the batch" in guard.report.reason
    alone = Guard(model, None, [Against(kind)], executor="sequential").generate(**inputs, **SETTINGS, **DETAILS)
    assert all(torch.equal(found, expected) for found, expected in zip(guarded.logits, alone.logits, strict=True))
    with pytest.raises(ModeRefused, match="depends on the batch"):
        Guard(model, None, [Against(kind)], executor="batched").generate(**inputs, **SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_quantiser_of_single_tokens_and_half_precision_stay_one_batch(dtype):
    model, inputs = tiny("llava")
    by_layers(model.to(dtype), (-1,))
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    for kind in ("noised", "longer"):
        guard = Guard(model, None, [Against(kind)])
        guard.generate(**inputs, **SETTINGS)
        assert guard.report.executor == "batched", guard.report.reason


def test_a_model_that_is_quantised_between_calls_is_tried_again():
    model, inputs = tiny("llava")
    guard = Guard(model, None, [Against("longer")])
    executors = []
    for change in (None, by_hooks, None):
        if change is not None:
            change(model, (0, 1, 2))
        guard.generate(**inputs, **SETTINGS)
        executors.append(guard.report.executor)
    assert executors == ["batched", "sequential", "sequential"]


class CountsByCache(transformers.LlavaForConditionalGeneration):
    """Its layers sharpen attention beyond the 16th position, which they count by the cache, as those of Llama 4 do."""

    def sharpen(self):
        for layer in self.get_decoder().layers:
            layer.self_attn.register_forward_pre_hook(self._sharpen, with_kwargs=True)
        return self

    @staticmethod
    def _sharpen(attention, args, kwargs):
        cache = next((value for value in kwargs.values() if hasattr(value, "get_seq_length")), None)
        past, hidden = 0 if cache is None else cache.get_seq_length(attention.layer_idx), kwargs["hidden_states"]
        places = past + torch.arange(hidden.shape[1])
        return args, {**kwargs, "hidden_states": hidden * (1 + places // 16).view(1, -1, 1)}


@pytest.mark.parametrize("kind", ["longer", "blind", "noised"])
def test_layers_that_count_by_the_cache_decode_one_by_one_where_prompts_differ_in_length(kind):
    model, inputs = tiny("llava")
    model.__class__ = CountsByCache
    output, report = run(model.sharpen(), inputs, kind)
    alone, _ = run(model, inputs, kind, executor="sequential")
    assert report.strategies[0].had_effect
    assert report.executor == ("batched" if kind == "noised" else "sequential")
    assert kind == "noised" or "length of the cache" in report.reason
    for found, expected in zip(output.logits, alone.logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def run(model, inputs, kind, **options):
    guard = Guard(model, None, [Against(kind)], **options)
    return guard.generate(**inputs, **SETTINGS, **DETAILS), guard.report


def test_a_model_is_tried_once():
    model, inputs = tiny("llava")
    forwards = []
    model.get_decoder().register_forward_pre_hook(lambda *_: forwards.append(1))
    counts = []
    for _ in range(3):
        forwards.clear()
        Guard(model, None, [Against("longer")]).generate(**inputs, **SETTINGS)
        counts.append(len(forwards))
    assert counts[1] == counts[2] == 2 + 4, "two prefills, and one forward for each of the other tokens"
    assert counts[0] > counts[1], "no power: the first call tried nothing"


@pytest.mark.parametrize("executor", ["batched", "sequential"])
@pytest.mark.parametrize("architecture", ["llava", "gemma3"])
def test_everything_that_generate_returns_has_the_width_and_the_rows_of_main(architecture, executor):
    model, inputs = tiny(architecture, 2)
    model.set_attn_implementation("eager")
    wanted = {"output_attentions": True, "output_hidden_states": True, "output_scores": True, **DETAILS}
    guard = Guard(model, None, [Against("longer", weight=0.0, beta=0.1)], executor=executor)
    inputs["attention_mask"][1, :2] = 0
    plain = model.generate(**inputs, **SETTINGS, **wanted)
    guarded = guard.generate(**inputs, **SETTINGS, **wanted)
    assert guard.report.executor == executor
    assert torch.equal(plain.sequences, guarded.sequences), "no power: the passes of the two runs are not the same"
    for name in ("attentions", "hidden_states", "logits"):
        for expected, found in zip(leaves(plain[name]), leaves(guarded[name]), strict=True):
            assert found.shape == expected.shape, name
            kept = found > -1000 if name == "logits" else torch.ones_like(found, dtype=torch.bool)  # ruled-out tokens
            assert torch.allclose(found[kept], expected[kept], atol=1e-4), name
    for layer, expected in zip(guarded.past_key_values.layers, plain.past_key_values.layers, strict=True):
        assert layer.keys.shape == expected.keys.shape


def leaves(value):
    return [value] if isinstance(value, torch.Tensor) else [leaf for item in value for leaf in leaves(item)]


@pytest.mark.parametrize("executor", ["auto", "sequential"])
def test_an_exception_in_any_forward_leaves_the_model_as_it_was(executor):
    model, inputs = tiny("qwen2_vl")
    decoder, calls = model.get_decoder(), []
    before = fingerprint(model), state(model)
    guard = Guard(model, None, [Against("longer")], executor=executor)
    for at in range(1, 40):
        calls.clear()
        handle = decoder.register_forward_pre_hook(lambda *_, at=at: boom(calls, at))
        try:
            guard.generate(**inputs, **SETTINGS)
        except BoomError:
            continue
        finally:
            handle.remove()
            assert (fingerprint(model), state(model)) == before, f"forward {at}"
        break
    assert 6 < at < 39, f"no power: {at} forwards"


def boom(calls, at):
    calls.append(1)
    if len(calls) == at:
        raise BoomError


def state(model):
    return [sorted(vars(part)) for part in model.modules()]
