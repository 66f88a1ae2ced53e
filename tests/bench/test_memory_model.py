"""Memory by arithmetic against the tensors of real calls: bytes of weights and caches exactly."""

from __future__ import annotations

import gc
import json

import pytest
import torch
import transformers
from command_line import run_command, run_refused
from transformers.cache_utils import DynamicLayer

from lvlm_guard import Guard, Stack, loading
from lvlm_guard.bench.running.branch_lengths import read_branches, sketch_request
from lvlm_guard.bench.running.cost_model import IMAGE_FREE, NOISE
from lvlm_guard.bench.running.memory_model import Room, estimate_weights, predict_memory
from lvlm_guard.bench.running.shapes import LLAVA_1_5_7B, Shape
from lvlm_guard.errors import InputError
from lvlm_guard.testing import tiny

CONTRASTS = ("plain", "m3id", "vcd", "vcd+m3id")


class HeldCaches(transformers.LogitsProcessor):
    """Counts the bytes of all caches that are held when the last token is drawn."""

    def __init__(self, tokens):
        self.rest, self.size = tokens, 0

    def __call__(self, input_ids, scores):
        self.rest -= 1
        if not self.rest:
            self.size = count_cache_bytes()
        return scores


def count_cache_bytes():
    gc.collect()  # caches that were joined stay in circles until then
    storages = {}
    for layer in (entry for entry in gc.get_objects() if isinstance(entry, DynamicLayer)):
        for tensor in (layer.keys, layer.values) if layer.is_initialized else ():
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measure_caches(model, inputs, stack, executor, tokens):
    held = HeldCaches(tokens)
    guard = Guard(model, None, stack, executor=executor)
    settings = {"do_sample": False, "logits_processor": transformers.LogitsProcessorList([held])}
    guard.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, **settings)
    return held.size, guard.report.executor


@pytest.mark.parametrize("executor", ["batched", "sequential"])
@pytest.mark.parametrize("stack", CONTRASTS)
@pytest.mark.parametrize("tokens", [1, 2, 70])
def test_caches_are_those_of_a_call(stack, executor, tokens):
    model, inputs = tiny("llava", 2)
    images = int((inputs["input_ids"][0] == model.config.image_token_id).sum())
    shape = Shape.of(model.config, image_tokens=images, value_bytes=4)
    prompt = inputs["input_ids"].shape[1] - images
    strategies = Stack.of(None if stack == "plain" else stack)
    branches = read_branches(strategies, sketch_request(shape, prompt, model.config))
    assert len(branches) == (0 if stack == "plain" else stack.count("+") + 1)
    measured, used = measure_caches(model, inputs, strategies, executor, tokens)
    planned = predict_memory(shape, 0, branches, 2, prompt=prompt, tokens=tokens, batched=executor == "batched")
    if tokens > 1:
        assert used == planned.executor
    assert planned.caches == measured


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_of_the_model(name, dtype, tmp_path):
    model, _ = tiny(name)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    tensors = {id(tensor): tensor for tensor in (*loaded.parameters(), *loaded.buffers())}
    measured = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert loading.measure_weights(loading.load_config(str(tmp_path)), dtype) == measured


def test_memory_is_linear_in_the_batch_and_a_batch_that_fits_is_the_largest():
    planned = predict_memory(LLAVA_1_5_7B, estimate_weights(LLAVA_1_5_7B), [NOISE], 4)
    room = Room.parse("24GB").usable
    largest = planned.largest_batch(room)
    totals = [predict_memory(LLAVA_1_5_7B, planned.weights, [NOISE], batch).total for batch in (largest, largest + 1)]
    assert totals[0] <= room < totals[1]
    assert largest > 1
    assert planned.largest_batch(planned.weights / 2) == 0


def test_branches_of_their_own_hold_no_padding():
    batched, sequential = (predict_memory(LLAVA_1_5_7B, 0, [IMAGE_FREE], batched=way) for way in (True, False))
    assert sequential.caches < batched.caches


def test_estimated_weights_are_near_the_published_number():
    assert estimate_weights(LLAVA_1_5_7B) == pytest.approx(2 * 7.063e9, rel=0.01)  # of the checkpoint's index


@pytest.mark.parametrize(("text", "size"), [("80GB", 80e9), ("24GiB", 24 * 2**30), ("1.5 tb", 1.5e12), ("512", 512)])
def test_sizes(text, size):
    assert Room.parse(text).size == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "80XB", "0GB"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match="80GB"):
        Room.parse(text)


def test_the_command_says_whether_it_fits(monkeypatch, capsys):
    asked = ("plan", "--model", "llava-1.5-7b", "--hardware", "h200")
    printed = run_command(*asked, "--batch", 64, "--gpu", "24GB")
    assert "batched: a batch of 64 does not fit" in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 80
    figures = json.loads(run_command(*asked, "--batch", 2, "--gpu", "80GB", "--json"))["memory"]
    assert [entry["executor"] for entry in figures] == ["none", "batched", "sequential"]
    assert all(entry["fits"] for entry in figures)
    assert figures[0]["largest_batch"] > figures[1]["largest_batch"] > 2
    exact = json.loads(run_command("plan", "--model", "testbed", "--json"))["memory"][0]
    model, _ = loading.load("testbed", "cpu")
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    assert exact["weights"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert "80GB" in run_refused(monkeypatch, capsys, *asked, "--gpu", "much")
