"""Nothing is kept of a call, and a model that nobody holds is freed, however it was guarded."""

from __future__ import annotations

import functools
import gc
import os
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from gold import SUPPRESSED, Against
from mechanisms import MECHANISMS, Inside
from PIL import Image
from toy_processor import toy_processor
from transformers import DynamicCache
from versions import KEPT

from lvlm_guard import Guard, HiddenEdit, InputError, ModelRefused, NoEffectWarning, anatomy
from lvlm_guard.testing import tiny
from lvlm_guard.testing.intact import exploding

SETTINGS = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SUPPRESSED}
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a b"}]}]
SLOW = ("attention", "hidden", "search")
CALLS_AFTER_CALLS = ("memvr", "opera")
"""Stacks that need no two caches at once."""
PAGE = os.sysconf("SC_PAGE_SIZE")


def count_objects():
    gc.collect()
    objects = gc.get_objects()
    tensors = sum(1 for entry in objects if isinstance(entry, torch.Tensor))
    return len(objects), tensors


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def call_again_and_again(guards, inputs, times):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        for number in range(times):
            guard = guards[number % len(guards)]
            if number % 3:
                guard.generate(**inputs, **SETTINGS)
            else:
                with guard.attached():
                    guard.model.generate(**inputs, **SETTINGS)


def make_guards(model, inputs):
    guards = [Guard(model, None, stack) for name, stack in MECHANISMS.items() if name != "readout"]
    return [guard for guard in guards if not is_refused(guard, inputs)]


def is_refused(guard, inputs):
    """Whether the model is one whose vision tower keeps what its layers return before it is edited."""
    try:
        call_again_and_again([guard], inputs, 1)
    except ModelRefused as error:
        if KEPT not in str(error):
            raise
        return True
    return False


@pytest.mark.parametrize(
    ("warm_up", "times"), [(7, 7), pytest.param(60, 1000, marks=pytest.mark.slow)], ids=["a few", "a thousand"]
)
def test_nothing_grows_with_the_number_of_generations(warm_up, times):
    model, inputs = tiny("llava")
    guards = make_guards(model, inputs)
    assert len(guards) > len(MECHANISMS) - 4
    call_again_and_again(guards, inputs, warm_up)
    resident = resident_bytes() if Path("/proc/self/statm").exists() else None
    grown = []
    for _ in range(2):  # what a first call imports stays; what every call leaves comes again
        objects, tensors = count_objects()
        call_again_and_again(guards, inputs, times)
        objects_after, tensors_after = count_objects()
        grown.append((tensors_after - tensors, objects_after - objects))
    assert min(tensors for tensors, _ in grown) <= 0
    assert min(objects for _, objects in grown) < 50, "a call leaves objects behind"
    if resident is not None and times >= 1000:
        assert resident_bytes() - resident < 16 * 2**20


@pytest.mark.parametrize("before", [True, False])
def test_forwards_that_a_refused_call_leaves_on_a_tower_are_taken_off(before):
    """As transformers 5.0.0 leaves them where a forward that collects hidden states is interrupted."""
    model, inputs = tiny("llava")
    layers = anatomy.vision_layers(model)
    for layer in layers:
        if before:
            layer.forward = functools.partial(type(layer).forward, layer)
    found = [vars(layer).get("forward") for layer in layers]

    def leave(hidden, view):
        for layer in layers:
            layer.forward = functools.partial(layer.forward)
        raise InputError("refused")

    with pytest.raises(InputError, match="refused"):
        Guard(model, None, [Inside(hides=(HiddenEdit("mlp", leave, tower="vision"),))]).generate(**inputs, **SETTINGS)
    assert [vars(layer).get("forward") for layer in layers] == found
    assert (found[0] is not None) is before


def test_the_count_would_see_a_call_that_leaves_something():
    model, inputs = tiny("llava")
    guard, kept = Guard(model, None, [Against("noised")]), []
    call_again_and_again([guard], inputs, 3)
    objects, tensors = count_objects()
    for _ in range(7):
        kept.append(guard.generate(**inputs, **SETTINGS))
        kept += [[] for _ in range(8)]
    objects_after, tensors_after = count_objects()
    assert tensors_after == tensors + 7
    assert objects_after - objects >= 50


def generate(guard, inputs):
    guard.generate(**inputs, **SETTINGS)


def attach(guard, inputs):
    with guard.attached():
        guard.model.generate(**inputs, **SETTINGS)


def fail(guard, inputs):
    with exploding(guard.model, at=2):
        guard.generate(**inputs, **SETTINGS)


def chat(guard, inputs):
    guard.chat(MESSAGES, images=Image.new("RGB", (30, 30), "teal"), **SETTINGS)


def ask_sibling(guard, inputs):
    guard.using([Against("blind")]).generate(**inputs, **SETTINGS)
    guard.using(None).generate(**inputs, **SETTINGS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("use", [generate, attach, fail, chat, ask_sibling])
@pytest.mark.parametrize("mechanism", ["branch", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_model_that_nobody_holds_is_freed(use, mechanism):
    model, inputs = tiny("llava")
    guard = Guard(model, toy_processor(), MECHANISMS[mechanism])
    use(guard, inputs)
    seen = [weakref.ref(model), weakref.ref(guard), weakref.ref(model.lm_head.weight)]
    del model, guard
    gc.collect()
    assert [reference() for reference in seen] == [None] * 3


@pytest.fixture
def uncollected():
    """Leave cycles of references where they are."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("executor", ["batched", "sequential"])
@pytest.mark.parametrize(
    ("stack", "settings"),
    [("vcd", {}), ("vcd+pai", {}), ("vdd+dola", {"num_beams": 2}), ("avisc", {}), ("memvr", {}), ("opera", {})],
    ids=str,
)
def test_caches_go_with_the_call_and_wait_for_no_collection(stack, settings, executor, monkeypatch):
    model, inputs = tiny("llava")
    guard = Guard(model, None, stack, executor="auto" if stack in ("memvr", "opera") else executor)
    made, begin = weakref.WeakSet(), DynamicCache.__init__

    def note(cache, *args, **kwargs):
        begin(cache, *args, **kwargs)
        made.add(cache)
        counts.append(len(made))

    counts = []
    monkeypatch.setattr(DynamicCache, "__init__", note)
    guard.generate(**inputs, **SETTINGS, **settings)
    assert max(counts) > (stack not in CALLS_AFTER_CALLS)
    assert [cache.get_seq_length() for cache in made] == []
