"""Attention of an engine's model, computed again from its paged cache: as the engine computes it, and edited as by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lvlm_guard import AttentionEdit
from lvlm_guard.engines.vllm.attention_editing import AttentionEditor, PlannedAttention
from lvlm_guard.engines.vllm.attention_rows import AttentionRows, PlacedEdit
from lvlm_guard.engines.vllm.cache_reading import LAYOUTS

HEADS, KEY_HEADS, SIZE, BLOCK, LENGTH = 4, 2, 8, 4, 10
BLOCKS = torch.tensor([5, 1, 3])
OPERATIONS = {
    "add": 2.0, "scale": 3.0, "add_abs": 1.5, "mask": 1.0, "scale_probabilities": 2.0, "gate_heads": 0.0,
}  # fmt: skip


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


QUERY, KEY, VALUE = draw(3, HEADS, SIZE), draw(LENGTH, KEY_HEADS, SIZE), draw(LENGTH + 1, KEY_HEADS, SIZE)[:LENGTH]
POSITIONS = torch.tensor([7, 8, 9])
KEYS = torch.arange(LENGTH) % 3 == 1


def attend(scores):
    ahead = torch.arange(LENGTH) > POSITIONS[:, None]
    return scores.masked_fill(ahead, -torch.inf).softmax(-1)


def find_scores():
    return torch.einsum("rhs,phs->hrp", QUERY, KEY.repeat_interleave(2, 1)) * 0.3


def read(probabilities):
    return torch.einsum("hrp,phs->rhs", probabilities, VALUE.repeat_interleave(2, 1))


def place(operation="add", queries=(True, False, True), **options):
    return PlacedEdit(
        AttentionEdit((0, 1), operation, **{"amount": OPERATIONS[operation], **options}), torch.tensor(queries), KEYS
    )


def edit_by_hand(operation):
    scores, amount = find_scores(), OPERATIONS[operation]
    edited = {
        "add": scores + amount,
        "scale": scores * amount,
        "add_abs": scores + amount * scores.abs(),
        "mask": torch.full_like(scores, -torch.inf),
    }.get(operation, scores)
    probabilities = attend(torch.where(KEYS, edited, scores))
    if operation == "scale_probabilities":
        probabilities = torch.where(KEYS, probabilities * amount, probabilities)
    return read(probabilities) * (amount if operation == "gate_heads" else 1.0)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_edit_applies_at_its_queries_keys_and_heads_alone(operation):
    rows = AttentionRows(QUERY, POSITIONS, 0.3)
    plain, edited = rows.compute(KEY, VALUE, [place(operation, heads=(1, 2))])
    torch.testing.assert_close(plain, read(attend(find_scores())))
    expected = plain.clone()
    expected[[0, 2], 1:3] = edit_by_hand(operation)[[0, 2], 1:3]
    torch.testing.assert_close(edited, expected)
    assert (edited - plain).abs().amax((1, 2))[[0, 2]].min() > 0.01


def test_renormalised_probabilities_add_up_to_one_and_edits_follow_each_other():
    rows, ones = AttentionRows(QUERY, POSITIONS, 0.3), torch.ones_like(VALUE)
    _, edited = rows.compute(KEY, ones, [place("scale_probabilities", renormalise=True)])
    torch.testing.assert_close(edited, torch.ones_like(edited))
    twice = rows.compute(KEY, VALUE, [place("add"), place("scale")])[1]
    swapped = rows.compute(KEY, VALUE, [place("scale"), place("add")])[1]
    assert (twice - swapped).abs().max() > 0.01


class Attention(nn.Module):
    """Attention over a paged cache, as engines have it."""

    def __init__(self, cache):
        super().__init__()
        self.kv_cache, self.num_heads, self.num_kv_heads, self.head_size, self.impl = (
            cache,
            HEADS,
            KEY_HEADS,
            SIZE,
            self,
        )
        self.scale = 0.3

    def forward(self, query):
        out = torch.zeros(len(query), HEADS * SIZE)
        out[2:5] = read(attend(find_scores())).flatten(1)
        return out


class Layer(nn.Module):
    def __init__(self, cache):
        super().__init__()
        self.attn = Attention(cache)


class Decoder(nn.Module):
    def __init__(self, cache):
        super().__init__()
        self.layers = nn.ModuleList([Layer(cache)])


def write_cache(layout):
    """Return a cache of 6 blocks that holds the keys and values in one layout, and something else elsewhere."""
    pages = [draw(6, KEY_HEADS, BLOCK, SIZE) for _ in range(2)]
    for position, side in itertools.product(range(LENGTH), (0, 1)):
        pages[side][BLOCKS[position // BLOCK], :, position % BLOCK] = (KEY, VALUE)[side][position]
    keys, values = pages
    if layout == "keys and values apart":
        return torch.stack([keys.transpose(1, 2), values.transpose(1, 2)])
    keys = keys.transpose(2, 3).reshape(keys.shape) if layout == "transposed keys in one half" else keys
    return torch.cat([keys.flatten(2), values.flatten(2)], dim=2).view(6, KEY_HEADS, BLOCK, 2 * SIZE)


def run(cache, edits=None):
    decoder, failures = Decoder(cache), {}
    editor = AttentionEditor(decoder, failures.setdefault)
    undo = editor.install()
    planned = PlannedAttention("one", edits or [place()], slice(2, 5), POSITIONS, BLOCKS, BLOCK)
    editor.plan([planned])
    query = torch.cat([draw(2, HEADS, SIZE), QUERY, draw(1, HEADS, SIZE)]).flatten(1)
    output = decoder.layers[0].attn(query)
    undo()
    assert not decoder.layers[0].attn._forward_hooks
    return output, failures, decoder.layers[0].attn(query)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_replaced_whatever_layout_the_cache_has(layout):
    output, failures, plain = run(write_cache(layout))
    assert failures == {}
    expected = plain.clone()
    expected[[2, 4]] = edit_by_hand("add").flatten(1)[[0, 2]]
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("cache", "edits", "message"),
    [
        (draw(6, KEY_HEADS, BLOCK, 2 * SIZE), None, "differs from the engine's own"),
        (draw(6, 3), None, "differs from the engine's own"),
        (write_cache("keys in one half"), [place(heads=(7,))], "outside attention of 4 heads"),
    ],
)
def test_a_cache_that_gives_other_attention_is_refused_and_nothing_is_replaced(cache, edits, message):
    output, failures, plain = run(cache, edits)
    assert torch.equal(output, plain)
    assert message in str(failures["one"])


def test_attention_that_a_forward_does_not_come_to_is_refused():
    decoder, failures = Decoder(write_cache("keys in one half")), {}
    editor = AttentionEditor(decoder, failures.setdefault)
    editor.install()
    editor.plan([PlannedAttention("one", [place()], slice(2, 5), POSITIONS, BLOCKS, BLOCK)])
    decoder.layers[0].attn.forward(draw(6, HEADS * SIZE))
    editor.check()
    assert "did not run the attention of layer 0" in str(failures["one"])


def test_a_layer_without_attention_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])

    failures = {}
    editor = AttentionEditor(Bare(), failures.setdefault)
    editor.plan([PlannedAttention("one", [place()], slice(2, 5), POSITIONS, BLOCKS, BLOCK)])
    assert "Layer 0 of this model in vLLM shows no attention" in str(failures["one"])
