"""Caches that grow in place hold what transformers' own would, and never change what somebody was handed."""

import copy
import random

import pytest
import torch
from gold import SUPPRESSED, Against
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lvlm_guard import Guard
from lvlm_guard.forward import caches
from lvlm_guard.forward.caches import growing as growing_module
from lvlm_guard.forward.caches.growing import ROOM, grow_in_place
from lvlm_guard.testing import tiny

ROWS, HEADS, SIZE = 2, 3, 4
SETTINGS = {"max_new_tokens": 6, "do_sample": False}


def cache_of(*layers):
    cache = DynamicCache()
    cache.layers = list(layers)
    return cache


def growing():
    layer = DynamicLayer()
    grow_in_place(cache_of(layer))
    return layer


def states(positions, rows=ROWS, **options):
    return torch.randn(rows, HEADS, positions, SIZE, **options), torch.randn(
        rows, HEADS, positions, SIZE + 1, **options
    )


def cut(layer, positions):
    layer.keys, layer.values = layer.keys[..., :-positions, :], layer.values[..., :-positions, :]


ANYTHING = {
    "one token": lambda layer: layer.update(*states(1)),
    "several": lambda layer: layer.update(*states(5)),
    "more than there is room for": lambda layer: layer.update(*states(ROOM + 1)),
    "cropped": lambda layer: cut(layer, 2),
    "reordered": lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
    "rows taken": lambda layer: layer.batch_select_indices(torch.tensor([0, 0])),
}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_to_it_a_layer_holds_what_a_copying_one_holds(seed):
    draw = random.Random(seed)
    layers, handed, reorders = [growing(), DynamicLayer()], [], 0
    for step in range(40):
        name = draw.choice([*ANYTHING, "one token"]) if step > 1 else "several"
        for layer in layers:
            torch.manual_seed(step)
            ANYTHING[name](layer)
        mine, wanted = layers
        assert torch.equal(mine.keys, wanted.keys), name
        assert torch.equal(mine.values, wanted.values), name
        assert mine.get_seq_length() == wanted.get_seq_length()
        reorders += name == "reordered"
        handed.append((mine.keys, mine.keys.clone(), mine.values, mine.values.clone(), reorders))
        for keys, keys_then, values, values_then, reorders_then in handed:
            if reorders < reorders_then + 2:  # rows go back and forth between two storages
                assert torch.equal(keys, keys_then)
                assert torch.equal(values, values_then)


def test_rows_are_reordered_with_room_behind_them():
    layer = growing()
    layer.update(*states(7))
    for _ in range(3):
        layer.reorder_cache(torch.tensor([1, 0]))
        places = layer.keys.data_ptr(), layer.values.data_ptr()
        layer.update(*states(1))
        assert (layer.keys.data_ptr(), layer.values.data_ptr()) == places
    assert layer.get_seq_length() == 10


def test_reordered_rows_go_back_and_forth_between_two_storages():
    layer = growing()
    before = states(7)
    layer.update(*before)
    first = layer.keys, layer.keys.clone()
    places = []
    for _ in range(6):
        layer.reorder_cache(torch.tensor([1, 0]))
        places.append(layer.keys.data_ptr())
        layer.update(*states(1))
    assert len(set(places)) == 2
    assert torch.equal(*first)  # what was there before is nobody's to write


def test_a_tensor_that_was_put_back_is_reordered_from_itself():
    layer, plain = growing(), DynamicLayer()
    taken = {}
    for each in (layer, plain):
        torch.manual_seed(0)
        each.update(*states(7))
        each.reorder_cache(torch.tensor([1, 0]))
        each.update(*states(1))
        taken[each] = each.keys, each.values
        each.reorder_cache(torch.tensor([1, 1]))
        each.update(*states(1))
        each.keys, each.values = taken[each]
        each.reorder_cache(torch.tensor([1, 0]))
        each.update(*states(1))
    assert torch.equal(layer.keys, plain.keys)
    assert torch.equal(layer.values, plain.values)


@pytest.mark.parametrize("stack", [["vcd"], ["vdd"]], ids=str)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_beams_copy_their_cache_once_a_step(name, stack, monkeypatch):
    model, inputs = tiny(name)
    settings = {"max_new_tokens": 7, "num_beams": 3, "do_sample": False, "num_return_sequences": 2}
    Guard(model, stack=stack, executor="batched").generate(**inputs, **settings)  # tries rows of a batch, once
    moves, copies = [], []
    update = DynamicLayer.update
    monkeypatch.setattr(
        DynamicLayer, "update", lambda self, *args, **more: copies.append(type(self)) or update(self, *args, **more)
    )
    select = growing_module._select
    monkeypatch.setattr(growing_module, "_select", lambda *args: moves.append(args[2]) or select(*args))
    guard = Guard(model, stack=stack, executor="batched")
    output = guard.generate(**inputs, **settings)
    plain_layers = [layer for layer in model.get_decoder().layers if not getattr(layer.self_attn, "is_sliding", False)]
    assert len(moves) == 6 * 2 * len(plain_layers)
    assert any(not torch.equal(index, torch.arange(len(index))) for index in moves)
    concatenations = [kind for kind in copies if kind is DynamicLayer]
    monkeypatch.undo()
    rows = len(guard.report.branches) + 1
    assert len(concatenations) == rows * len(plain_layers)  # the prefill of main and of every branch
    monkeypatch.setattr(growing_module, "grow_in_place", lambda cache: lambda: None)
    monkeypatch.setattr(caches, "grow_in_place", lambda cache: lambda: None)
    assert torch.equal(output, guard.generate(**inputs, **settings))
    assert torch.equal(output, Guard(model, stack=stack, executor="sequential").generate(**inputs, **settings))


def test_tokens_are_written_behind_the_others_until_there_is_no_room():
    layer = growing()
    layer.update(*states(7))
    places = []
    for _ in range(ROOM + 2):
        layer.update(*states(1))
        places.append((layer.keys.data_ptr(), layer.values.data_ptr()))
    assert len(set(places)) == 2
    assert places.index(places[-1]) == ROOM + 1


def test_a_copy_of_a_cache_goes_its_own_way():
    layer = growing()
    for positions in (7, 1, 1):
        layer.update(*states(positions))
    other = copy.deepcopy(layer)
    before = layer.keys.clone()
    new = states(1)
    other.update(*states(1))
    layer.update(*new)
    other.update(*states(1))
    assert torch.equal(layer.keys, torch.cat([before, new[0]], dim=-2))
    assert torch.equal(other.keys[..., :-2, :], before)


@pytest.mark.parametrize(
    "wrong", [{"rows": 1}, {"dtype": torch.float64}], ids=["rows that would be spread", "another dtype"]
)
def test_what_does_not_fit_is_left_to_transformers(wrong):
    layer, plain = growing(), DynamicLayer()
    first = states(3)
    for one in (layer, plain):
        one.update(*first)
        one.update(*(part[..., :1, :] for part in first))
    new = states(1, **wrong)
    try:
        wanted = plain.update(*new)[0]
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=str(error)[:20]):
            layer.update(*new)
    else:
        assert torch.equal(layer.update(*new)[0], wanted)
        assert layer.keys.dtype == wanted.dtype


def test_other_kinds_of_caches_and_layers_are_left_alone():
    window, offloading = DynamicSlidingWindowLayer(8), cache_of(DynamicLayer())
    offloading.offloading = True
    for cache in (cache_of(window), offloading, None):
        grow_in_place(cache)()
    assert "update" not in vars(window)
    assert "update" not in vars(offloading.layers[0])


def test_the_undo_leaves_a_plain_layer():
    layer, fresh = DynamicLayer(), DynamicLayer()
    undo = grow_in_place(cache_of(layer))
    for one in (layer, fresh):
        torch.manual_seed(0)
        one.update(*states(3))
        one.update(*states(1))
    undo()
    assert vars(layer).keys() == vars(fresh).keys()
    assert torch.equal(layer.update(*states(1))[0][..., :4, :], fresh.keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_says_the_same_bits_over_a_cache_in_place(attention, dtype):
    model, inputs = tiny("llava", 2)
    model.to(dtype).set_attn_implementation(attention)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    asked = {**SETTINGS, "return_dict_in_generate": True, "output_logits": True}
    copied = model.generate(**inputs, **asked)
    cache = DynamicCache(config=model.config.get_text_config())
    grow_in_place(cache)
    in_place = model.generate(**inputs, **asked, past_key_values=cache)
    assert not cache.layers[0].keys.is_contiguous()
    for one, other in zip(in_place.logits, copied.logits, strict=True):
        assert torch.equal(one, other)


class Places(torch.nn.Module):
    """A stopping criterion that notes where the first layer's keys lie."""

    def __init__(self, cache):
        super().__init__()
        self.cache, self.seen = cache, []

    def forward(self, input_ids, scores, **_):
        self.seen.append((self.cache.layers[0].keys.data_ptr(), self.cache.layers[0].keys.shape[0]))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.mark.parametrize("executor", ["batched", "sequential"])
def test_a_guarded_decode_grows_in_place_and_leaves_a_plain_cache(executor):
    model, inputs = tiny("llava")
    cache = DynamicCache(config=model.config.get_text_config())
    places = Places(cache)
    guard = Guard(model, None, [Against("noised")], executor=executor)
    wanted = guard.generate(**inputs, **SETTINGS)
    output = guard.generate(**inputs, **SETTINGS, past_key_values=cache, stopping_criteria=[places])
    assert torch.equal(output, wanted)
    prefill, *decode = places.seen
    assert len({place for place, _ in decode}) == 1
    assert prefill[0] not in {place for place, _ in decode}
    assert {rows for _, rows in decode} == {inputs["input_ids"].shape[0] * (2 if executor == "batched" else 1)}
    assert not any("update" in vars(layer) for layer in cache.layers)


LOOKUP = {"prompt_lookup_num_tokens": 3, "eos_token_id": SUPPRESSED[-1]}  # 4.57 asks for an end token
LONGER = [
    *((name, 2, mode) for name in ("llava", "qwen2_vl", "gemma3") for mode in ({}, {"num_beams": 3})),
    *((name, 1, LOOKUP) for name in ("llava", "qwen2_vl")),
]


@pytest.mark.parametrize(("name", "rows", "mode"), LONGER)
def test_a_decode_that_outgrows_its_room_says_the_same_bits_as_one_that_copies(name, rows, mode, monkeypatch):
    model, inputs = tiny(name, rows)
    asked = {"max_new_tokens": 10, "do_sample": False, "return_dict_in_generate": True, "output_logits": True, **mode}
    monkeypatch.setattr(growing_module, "ROOM", 2)
    in_place = Guard(model, None, [Against("noised")]).generate(**inputs, **asked)
    monkeypatch.setattr(caches, "grow_in_place", lambda _: lambda: None)
    copied = Guard(model, None, [Against("noised")]).generate(**inputs, **asked)
    assert torch.equal(in_place.sequences, copied.sequences)
    for one, other in zip(in_place.logits, copied.logits, strict=True):
        assert torch.equal(one, other)


def test_an_assistant_takes_a_cache_that_is_asked_for_by_name():
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 4, "do_sample": False}
    guard = Guard(model, stack=["vcd"])
    drafted = guard.generate(**inputs, **settings, assistant_model=tiny("llava")[0], cache_implementation="dynamic")
    assert torch.equal(drafted, guard.generate(**inputs, **settings))
