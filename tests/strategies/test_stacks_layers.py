"""Stacks of branches and readouts equal the sum written out by hand, in any order."""

import math

import pytest
import torch
from against_twin import check
from lvlm_guard_contrastive import VCD, VDD
from lvlm_guard_contrastive.vcd import signal_share
from lvlm_guard_layers import SLA, DeCo, DoLa
from twin import Twin

from lvlm_guard import Guard
from lvlm_guard.request.images import generator_for
from lvlm_guard.testing import tiny

INNER = (1 / 3, 2 / 3)


def noised(inputs):
    tile = inputs["pixel_values"][0]
    kept = signal_share(500)
    noise = torch.randn(tile.shape, generator=generator_for(tile, 0))
    return {**inputs, "pixel_values": (math.sqrt(kept) * tile + math.sqrt(1 - kept) * noise)[None]}


def without_image(inputs, *instead):
    ids = [token for token in inputs["input_ids"][0].tolist() if token != 100]
    first = inputs["input_ids"][0].tolist().index(100)
    ids[first:first] = instead
    ids = torch.tensor([ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def divergence(one, other):
    p, q = one.softmax(-1), other.softmax(-1)
    m = (p + q) / 2
    return float((p * (p / m).log() + q * (q / m).log()).sum())


def contrasted(twin, main):
    """What DoLa subtracts."""
    return max((twin.lens(layer, normed=False) for layer in (1, 2)), key=lambda inner: divergence(main, inner))


def plausible(main, wanted):
    return torch.where(main < main.max() + math.log(0.1), main - 1e4, wanted)


def vcd_dola(model, inputs, prefix):
    twin = Twin(model)
    main = twin.next(inputs, prefix)
    other = Twin(model).next(noised(inputs), prefix)
    return plausible(main, main + 0.7 * (main - other) - contrasted(twin, main)), main


def three_branches_and_readouts(model, inputs, prefix):
    twin = Twin(model)
    main = twin.next(inputs, prefix)
    blind, noise = Twin(model), Twin(model).next(noised(inputs), prefix)
    none, unk = blind.next(without_image(inputs), prefix), blind.next(without_image(inputs, 3), prefix)
    inner = [twin.lens(layer) for layer in (1, 2)]
    wanted = main + 0.7 * (main - noise) + 0.5 * (main - (none + unk) / 2) - contrasted(twin, main)
    wanted = wanted + 0.4 * (sum(inner) / 2 - main)
    best = main.argsort(descending=True)[:4]
    sure = torch.stack([one.softmax(-1)[best].max() for one in inner])
    wanted = wanted + 2.0 * sure.max() * inner[int(sure.argmax())]
    removed = torch.ones_like(main, dtype=torch.bool)
    removed[best] = False
    return plausible(main, wanted).masked_fill(removed, -torch.inf), main


DOLA = DoLa(layers=INNER)
TWO = [VCD(alpha=0.7), DOLA]
FIVE = [VCD(alpha=0.7), VDD(alpha=0.5), DOLA, SLA(gamma=0.4, layers=INNER), DeCo(2.0, 1.0, 4, INNER)]


@pytest.mark.parametrize("architecture", ["llava", "gemma3"])
@pytest.mark.parametrize("reverse", [False, True])
def test_vcd_and_dola(architecture, reverse):
    check(TWO[::-1] if reverse else TWO, vcd_dola, architecture)


@pytest.mark.parametrize("reverse", [False, True])
def test_three_branches_and_readouts(reverse):
    check(FIVE[::-1] if reverse else FIVE, three_branches_and_readouts, "llava")


@pytest.mark.parametrize("stack", [TWO, FIVE], ids=["two", "five"])
def test_the_order_of_a_stack_never_matters(stack):
    model, inputs = tiny("llava")
    calls = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    one, other = (Guard(model, None, order).generate(**inputs, **calls) for order in (stack, stack[::-1]))
    assert torch.equal(one.sequences, other.sequences)
    kept = torch.stack(one.logits) > -1e3
    assert torch.equal(kept, torch.stack(other.logits) > -1e3)
    assert float((torch.stack(one.logits) - torch.stack(other.logits))[kept].abs().max()) <= 1e-5
