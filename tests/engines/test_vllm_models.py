"""Other models and implementations in a real vLLM: a small Qwen2-VL, and LLaVA run by the classes of transformers.

Needs vLLM in an environment of its own: `make test-vllm` makes one and runs these.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"),
]
if find_spec("vllm") is not None:
    import torch
    from served import draw_picture
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, Qwen2VLVideoProcessor
    from vllm import SamplingParams
    from vllm_engine import QUESTIONS, ROOMY, expect, make_prompt, read_tokens, start_engine, stop_engine

    from lvlm_guard import Guard
    from lvlm_guard.engines.errors import EngineFailed
    from lvlm_guard.errors import ModeRefused
    from lvlm_guard.testbed.architectures import qwen2_vl

NEW = 16
REQUESTS = 4
PENALTY = 1.5
"""An untrained model says one word for ever without it."""
VAF = [{"name": "vaf", "params": {"enhance": 3.0}}]
"""An untrained model does not heed the default."""
BY_TRANSFORMERS = (None, "vdd", "vcd", "vcd+vdd", "dola", "vsv")


@functools.cache
def save_qwen():
    """Write a small untrained Qwen2-VL whose answers are not all alike, and return where."""
    folder = Path(tempfile.mkdtemp(prefix="lvlm-guard-qwen2-vl-"))
    model = qwen2_vl.build_model(qwen2_vl.build_config(layers=4, tower_layers=2), 0)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.mul_(6)
            layer.mlp.down_proj.weight.mul_(6)
    model.save_pretrained(folder)
    parts = qwen2_vl.build_processor()
    processor = Qwen2VLProcessor(
        parts.image_processor, parts.tokenizer, Qwen2VLVideoProcessor(), chat_template=parts.chat_template
    )
    processor.save_pretrained(folder)
    for path in folder.glob("*.j*"):  # the published processor knows the token of an image by its published name
        path.write_text(path.read_text().replace("<image>", "<|image_pad|>"))
    return folder


@functools.cache
def load_qwen():
    folder = save_qwen()
    return Guard(Qwen2VLForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder))


def write_text(index):
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTIONS[index % 4]}]}
    return load_qwen().processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


def expect_qwen(stack):
    answers = []
    for index in range(REQUESTS):
        inputs = load_qwen().inputs(images=draw_picture(index), text=write_text(index))
        output = load_qwen().generate(
            **inputs, stack=stack, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, repetition_penalty=PENALTY
        )
        answers.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


@pytest.fixture(scope="module")
def qwen():
    llm = start_engine(save_qwen(), **ROOMY)
    yield llm
    assert llm.guard_counts()["alone"] == 0
    stop_engine(llm)


@pytest.mark.parametrize("stack", [None, "vdd", "icd", "vcd", "dola", "vsv", "pai", VAF])
def test_qwen2_vl_answers_as_the_guard_does(qwen, stack):
    prompts = [
        {"prompt": write_text(index), "multi_modal_data": {"image": draw_picture(index)}} for index in range(REQUESTS)
    ]
    parameters = SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW, repetition_penalty=PENALTY)
    expected = expect_qwen(stack)
    assert read_tokens(qwen.generate(prompts, parameters, stack=stack, use_tqdm=False)) == expected
    assert stack is None or expected != expect_qwen(None)


@pytest.mark.parametrize("change", [lambda data: data.to(torch.uint8), lambda data: [data]])
def test_images_that_are_no_floats_are_refused_and_not_left_out(qwen, change):
    prompt = qwen.render({"prompt": write_text(0), "multi_modal_data": {"image": draw_picture(0)}})
    [item] = prompt["mm_kwargs"]["image"]
    item["pixel_values"] = dataclasses.replace(item["pixel_values"], data=change(item["pixel_values"].data))
    with pytest.raises(ModeRefused, match="one tensor of pixels in floats"):
        qwen._builder._reader.read_request(prompt)


@functools.cache
def expect_before():
    """Return what `Guard` answers, before vLLM changes classes of transformers for its own use of them."""
    return {stack: expect(stack, REQUESTS, max_new_tokens=NEW) for stack in BY_TRANSFORMERS}


@pytest.fixture(scope="module")
def by_transformers():
    expect_before()
    llm = start_engine(model_impl="transformers", **ROOMY)
    yield llm
    assert llm.guard_counts()["alone"] == 0
    stop_engine(llm)


@pytest.mark.parametrize("stack", BY_TRANSFORMERS)
def test_the_classes_of_transformers_in_vllm_answer_as_the_guard_does(by_transformers, stack):
    prompts = [make_prompt(index) for index in range(REQUESTS)]
    parameters = SamplingParams(temperature=0, max_tokens=NEW)
    outputs = by_transformers.generate(prompts, parameters, stack=stack, use_tqdm=False)
    assert read_tokens(outputs) == expect_before()[stack]


def test_attention_that_transformers_calls_past_the_layers_is_refused(by_transformers):
    with pytest.raises(EngineFailed, match="did not run the attent"):
        by_transformers.generate(
            make_prompt(0), SamplingParams(temperature=0, max_tokens=4), stack="pai", use_tqdm=False
        )
