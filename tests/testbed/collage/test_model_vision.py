"""The tower: batch norms folded in are the batch norms applied; places are added; other sizes are refused."""

from __future__ import annotations

import pytest
import torch
from collage_stand_ins import tiny_model
from PIL import Image
from torch import nn
from torch.nn.functional import conv2d, pad, relu6

from lvlm_guard import Guard
from lvlm_guard.testbed import TestbedError
from lvlm_guard.testbed.collage.language_model import CONTROL, LanguageFile
from lvlm_guard.testbed.collage.vision import STAGES, TOKENS, Lite0Config, Lite0Model
from lvlm_guard.testbed.collage.vision_weights import EPSILON, fold, read_vision_weights


def published_weights(generator):
    """Random weights under the names of the published file."""

    def convolution(name, inside, outside, kernel, groups=1):
        shape = (outside, inside // groups, kernel, kernel)
        scale = (shape[1] * kernel**2) ** -0.5
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * scale * 1.5

    def norm(name, channels):
        weights[f"{name}.weight"] = torch.rand(channels, generator=generator) + 0.5
        weights[f"{name}.bias"] = torch.randn(channels, generator=generator) * 0.2
        weights[f"{name}.running_mean"] = torch.randn(channels, generator=generator) * 0.2
        weights[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5

    weights: dict[str, torch.Tensor] = {}
    convolution("_conv_stem", 3, 32, 3)
    norm("_bn0", 32)
    at, inside = 0, 32
    for count, kernel, _, expansion, outside in STAGES:
        for _ in range(count):
            wide = inside * expansion
            if expansion > 1:
                convolution(f"_blocks.{at}._expand_conv", inside, wide, 1)
                norm(f"_blocks.{at}._bn0", wide)
            convolution(f"_blocks.{at}._depthwise_conv", wide, wide, kernel, wide)
            norm(f"_blocks.{at}._bn1", wide)
            convolution(f"_blocks.{at}._project_conv", wide, outside, 1)
            norm(f"_blocks.{at}._bn2", outside)
            at, inside = at + 1, outside
    convolution("_conv_head", 320, 1280, 1)
    norm("_bn1", 1280)
    return weights


def run_published(weights, pixels):
    """EfficientNet-Lite0 written out, with its batch norms where they are published."""

    def convolve(x, name, stride=1, groups=1):
        kernel = weights[f"{name}.weight"].shape[-1]
        missing = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        x = pad(x, (missing // 2, missing - missing // 2) * 2)
        return conv2d(x, weights[f"{name}.weight"], stride=stride, groups=groups)

    def normalise(x, name):
        values = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return nn.functional.batch_norm(x, *values, eps=EPSILON)

    x = relu6(normalise(convolve(pixels, "_conv_stem", 2), "_bn0"))
    at = 0
    for count, _, stride, expansion, _ in STAGES:
        for number in range(count):
            inner, before = f"_blocks.{at}", x
            if expansion > 1:
                x = relu6(normalise(convolve(x, f"{inner}._expand_conv"), f"{inner}._bn0"))
            step = stride if number == 0 else 1
            x = relu6(normalise(convolve(x, f"{inner}._depthwise_conv", step, x.shape[1]), f"{inner}._bn1"))
            x = normalise(convolve(x, f"{inner}._project_conv"), f"{inner}._bn2")
            x = x + before if step == 1 and x.shape == before.shape else x
            at += 1
    return relu6(normalise(convolve(x, "_conv_head"), "_bn1")).flatten(2).transpose(1, 2)


def test_folded_weights_see_what_the_published_ones_see(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {name: value.double() for name, value in published_weights(generator).items()}
    pixels = torch.randn(2, 3, 224, 224, generator=generator, dtype=torch.float64)
    torch.save(weights, tmp_path / "weights.pth")
    tower = Lite0Model(Lite0Config()).double().eval()
    tower.load_state_dict({**read_vision_weights(tmp_path / "weights.pth"), "places": torch.zeros(TOKENS, 1280)})
    with torch.no_grad():
        ours, published = tower(pixels).last_hidden_state, run_published(weights, pixels)
    assert ours.shape == (2, 49, 1280)
    torch.testing.assert_close(ours, published, atol=1e-6, rtol=0)
    assert (published[0] - published[1]).abs().max() > 0.1
    assert published.std() > 0.1


def test_places_are_added_to_the_features_token_by_token():
    tower = tiny_model()[0].model.vision_tower
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, placed = tower(pixels).hidden_states
        torch.testing.assert_close(placed - features, tower.places[None], atol=1e-5, rtol=0)
    assert tower.places.abs().max() > 0.1


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="224 x 224"):
        tiny_model()[0].model.vision_tower(torch.zeros(1, 3, 192, 192))


def test_a_file_without_the_weights_is_refused(tmp_path):
    with pytest.raises(TestbedError, match="EfficientNet-Lite0"):
        read_vision_weights(tmp_path / "absent.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(TestbedError, match="EfficientNet-Lite0"):
        read_vision_weights(tmp_path / "other.pth")
    with pytest.raises(KeyError):
        fold({})


def test_the_tokenizer_makes_only_what_the_model_takes(monkeypatch):
    facts = dict.fromkeys((f"tokenizer.ggml.{role}_token_id" for role in ("bos", "eos", "padding", "unknown")), 0)
    facts |= {"tokens": ["<|end|>", "d", "o", "g"], "merges": [], "token_type": [CONTROL, 1, 1, 1]}
    monkeypatch.setattr(LanguageFile, "__init__", lambda self: None)
    monkeypatch.setattr(LanguageFile, "value", lambda _, key: facts.get(key, facts.get(key.split(".")[-1], 64)))
    made = LanguageFile().tokenizer()("dog")
    assert dict(made) == {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}


@pytest.mark.parametrize("stack", ["vcd", "m3id", "pai"])
def test_a_guard_takes_the_model(stack):
    model, processor = tiny_model()
    noise = torch.randint(0, 256, (200, 300, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    content = [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    guard = Guard(model, processor, stack=stack)
    inputs = guard.inputs(images=[Image.fromarray(noise.numpy())], text=[prompt])
    guard.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert guard.report.strategies[0].had_effect
