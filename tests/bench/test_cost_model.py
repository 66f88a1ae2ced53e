"""Predicted costs against a table worked out by hand, against real parameters, and beside measured rows."""

from __future__ import annotations

import pytest
import torch
import transformers

from lvlm_guard.bench.running.cost_model import (
    A100,
    H100_SXM,
    H200,
    IMAGE_FREE,
    NOISE,
    BranchLength,
    Target,
    predict,
)
from lvlm_guard.bench.running.shapes import LLAVA_1_5_7B, QWEN2_5_VL_7B, Shape
from lvlm_guard.errors import InputError
from lvlm_guard.testing import tiny

# Ratio of a decode step to plain generate, (batched, sequential), context = image + 64 prompt + 128 generated, bandwidth only.
STACKS = ([IMAGE_FREE], [NOISE], [NOISE, IMAGE_FREE], [NOISE] * 3)
TABLE = {
    (LLAVA_1_5_7B, 1): ((1.007, 1.98), (1.030, 2.00), (1.037, 2.98), (1.089, 4.0)),
    (LLAVA_1_5_7B, 8): ((1.049, 1.85), (1.196, 2.00), (1.245, 2.85), (1.588, 4.0)),
    (LLAVA_1_5_7B, 32): ((1.123, 1.63), (1.494, 2.00), (1.617, 2.63), (2.481, 4.0)),
    (QWEN2_5_VL_7B, 1): ((1.001, 2.00), (1.006, 2.00), (1.006, 3.00), (1.017, 4.0)),
    (QWEN2_5_VL_7B, 8): ((1.006, 1.96), (1.043, 2.00), (1.049, 2.96), (1.130, 4.0)),
    (QWEN2_5_VL_7B, 32): ((1.021, 1.87), (1.153, 2.00), (1.174, 2.87), (1.459, 4.0)),
}
# Whole answers at batch 1 on the H100, batched: decode steps to ratio.
ANSWERS = {
    (LLAVA_1_5_7B, NOISE): {1: 1.79, 16: 1.21, 128: 1.06, 512: 1.04},
    (LLAVA_1_5_7B, IMAGE_FREE): {1: 1.21, 16: 1.05, 128: 1.01, 512: 1.01},
    (QWEN2_5_VL_7B, NOISE): {1: 1.90, 16: 1.37, 128: 1.07, 512: 1.02},
    (QWEN2_5_VL_7B, IMAGE_FREE): {1: 1.09, 16: 1.04, 128: 1.01, 512: 1.00},
}
LLAVA_TEXT = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
}  # fmt: skip
QWEN_TEXT = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064,
}  # fmt: skip
QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}


def within(found: float, expected: float) -> bool:
    return found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("case", "ratios"), TABLE.items(), ids=[f"{shape.name}-{batch}" for shape, batch in TABLE])
def test_ratios_of_a_decode_step_are_those_of_the_table(case, ratios):
    shape, batch = case
    for stack, (batched, sequential) in zip(STACKS, ratios, strict=True):
        assert within(predict(shape, H100_SXM, stack, batch).ratio, batched)
        assert within(predict(shape, H100_SXM, stack, batch, batched=False).ratio, sequential)


def test_steps_and_prefills_take_the_milliseconds_worked_out_by_hand():
    llava, qwen = predict(LLAVA_1_5_7B, H100_SXM, [NOISE]), predict(QWEN2_5_VL_7B, H100_SXM, [NOISE])
    assert within(llava.plain_step_ms, 4.06)
    assert within(qwen.plain_step_ms, 4.24)
    assert within(predict(LLAVA_1_5_7B, H200).step_ms, 2.84)
    assert within(predict(QWEN2_5_VL_7B, H200).step_ms, 2.96)
    assert within(llava.plain_prefill_ms, 14.2 + 0.65)
    assert within(qwen.plain_prefill_ms, 28.3 + 11)
    assert llava.prefill_ratio == qwen.prefill_ratio == 2


@pytest.mark.parametrize(
    ("case", "ratios"), ANSWERS.items(), ids=[f"{one.name}-{branch.name}" for one, branch in ANSWERS]
)
def test_ratios_of_whole_answers_are_those_worked_out_by_hand(case, ratios):
    prediction = predict(case[0], H100_SXM, [case[1]])
    assert all(within(prediction.answer_ratio(steps), ratio) for steps, ratio in ratios.items())


def test_plain_generate_is_its_own_floor():
    plain = predict(LLAVA_1_5_7B, A100, batch=4)
    assert (plain.executor, plain.ratio, plain.prefill_ratio, plain.answer_ratio(9)) == ("none", 1, 1, 1)
    assert plain.answer_ms(9) == plain.prefill_ms + 9 * plain.step_ms
    # weights and 4 rows of 768 positions of 512 KiB over 2 TB/s
    assert plain.step_ms == pytest.approx((LLAVA_1_5_7B.weight_bytes + 4 * 768 * 2**19) / 2e12 * 1e3)


def test_padding_an_image_free_branch_makes_it_cost_like_a_noise_branch():
    padded = predict(LLAVA_1_5_7B, H100_SXM, [IMAGE_FREE], padded=True)
    assert padded.step_ms == predict(LLAVA_1_5_7B, H100_SXM, [NOISE]).step_ms
    assert padded.ratio > 1.02 > predict(LLAVA_1_5_7B, H100_SXM, [IMAGE_FREE]).ratio
    alone = [predict(LLAVA_1_5_7B, H100_SXM, [IMAGE_FREE], batched=False, padded=padded) for padded in (True, False)]
    assert alone[0] == alone[1]


def test_a_branch_costs_by_the_length_of_its_context():
    halved = predict(LLAVA_1_5_7B, H100_SXM, [BranchLength("half", image=0.5, text=10)])
    extra = (288 + 64 + 10 + 128) * LLAVA_1_5_7B.position_bytes
    assert halved.step_ms - halved.plain_step_ms == pytest.approx(extra / 3.35e12 * 1e3)


def test_many_rows_on_little_compute_are_bound_by_compute():
    slow = Target("slow", bandwidth=1e15, flops=1e12, efficiency=1.0)
    found = predict(LLAVA_1_5_7B, slow, [NOISE], batch=8)
    assert found.step_ms == pytest.approx(2 * 8 * LLAVA_1_5_7B.step_flops(768) / 1e12 * 1e3)
    assert found.ratio == 2


def test_named_shapes_are_what_the_configs_of_these_models_say():
    llava = transformers.LlavaConfig(text_config=LLAVA_TEXT, vision_config=CLIP, image_seq_length=576)
    qwen = transformers.Qwen2_5_VLConfig(text_config=QWEN_TEXT, vision_config=QWEN_VISION)
    assert Shape.of(llava, "LLaVA-1.5-7B") == LLAVA_1_5_7B
    assert Shape.of(qwen, "Qwen2.5-VL-7B", image_tokens=1200) == QWEN2_5_VL_7B


@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        ("LlamaForCausalLM", LLAVA_1_5_7B, lambda: transformers.LlamaConfig(**LLAVA_TEXT)),
        ("Qwen2ForCausalLM", QWEN2_5_VL_7B, lambda: transformers.Qwen2Config(**QWEN_TEXT)),
    ],
)
def test_counted_weights_are_the_parameters_of_the_decoder(name, shape, config):
    with torch.device("meta"):
        model = getattr(transformers, name)(config())
    read = sum(parameter.numel() for parameter in model.parameters()) - model.get_input_embeddings().weight.numel()
    assert shape.weights == pytest.approx(read, rel=1e-3)


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl", "internvl"])
def test_counted_bytes_per_position_are_those_of_the_cache(architecture):
    model, inputs = tiny(architecture)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    shape = Shape.of(model.config, image_tokens=4, value_bytes=4)
    assert shape.position_bytes * inputs["input_ids"].shape[1] == held


def test_the_vision_encoder_is_counted_by_its_parameters():
    model, _ = tiny("llava")
    layers = (
        model.model.vision_tower.vision_model.encoder
        if hasattr(model.model.vision_tower, "vision_model")
        else model.model.vision_tower.encoder
    )
    matrices = sum(parameter.numel() for parameter in layers.parameters() if parameter.ndim == 2)
    vision = Shape.of(model.config).vision
    attention = 4 * 26 * 26 * vision.width * vision.layers
    assert vision.flops(25) == 2 * 26 * matrices + attention


@pytest.mark.parametrize("architecture", ["gemma3", "mllama"])
def test_a_decoder_that_the_arithmetic_does_not_fit_is_refused(architecture):
    with pytest.raises(InputError, match="full attention"):
        Shape.of(tiny(architecture)[0].config, image_tokens=4)


def test_a_config_without_a_number_of_image_tokens_asks_for_it():
    with pytest.raises(InputError, match="image_tokens="):
        Shape.of(tiny("qwen2_5_vl")[0].config)


@pytest.mark.parametrize("case", [{"batch": 0}, {"prompt": 0, "branches": [IMAGE_FREE]}])
def test_a_prediction_of_nothing_is_refused(case):
    with pytest.raises(InputError, match="positive length"):
        predict(LLAVA_1_5_7B, H100_SXM, **case)
