"""Each bundled strategy against its published formula, written out from scratch."""

import math

import pytest
import torch
from gold import SUPPRESSED
from lvlm_guard_contrastive import ICD, M3ID, VCD, VDD
from lvlm_guard_contrastive.vcd import signal_share

from lvlm_guard import Guard
from lvlm_guard.request.images import generator_for
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words
from lvlm_guard.testing.recompute import next_logits
from lvlm_guard.testing.tiny import IMAGE_TOKEN, inputs_for

DEMOTED = -1e3


def guarded(model, inputs, strategy, tokens=4):
    guard = Guard(model, Words(), [strategy])
    settings = {"max_new_tokens": tokens, "do_sample": False, "suppress_tokens": SUPPRESSED}
    output = guard.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    return output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), [step[0] for step in output.logits]


def agrees(got, main, combined, beta):
    plausible = main >= main.max() + math.log(beta)
    assert bool(plausible.any())
    assert float((got - combined)[plausible].abs().max()) <= 1e-4
    assert float((got - (main - 1e4))[~plausible].abs().max()) <= 1e-2  # fp32 has three digits down there
    return float((combined - main)[plausible].abs().max())


def without_image(inputs, *instead):
    ids = [token for token in inputs["input_ids"][0].tolist() if token != IMAGE_TOKEN]
    first = inputs["input_ids"][0].tolist().index(IMAGE_TOKEN)
    ids[first:first] = instead
    ids = torch.tensor([ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(("step", "signal", "noise"), [(500, 0.8630, 0.5052), (999, 0.285, 0.9585), (0, None, 0.0047)])
def test_the_schedule_has_the_published_values(step, signal, noise):
    share = signal_share(step)
    assert math.sqrt(1 - share) == pytest.approx(noise, abs=5e-4)
    if signal:
        assert math.sqrt(share) == pytest.approx(signal, abs=5e-4)


def test_vcd():
    model, inputs = tiny("llava")
    tile = inputs["pixel_values"][0]
    betas = [1 / (1 + math.exp(6 - 12 * index / 999)) * (0.5e-2 - 1e-5) + 1e-5 for index in range(1000)]
    kept = math.prod(1 - beta for beta in betas[:501])
    noise = torch.randn(tile.shape, generator=generator_for(tile, 3))
    noised = {**inputs, "pixel_values": (math.sqrt(kept) * tile + math.sqrt(1 - kept) * noise)[None]}
    tokens, logits = guarded(model, inputs, VCD(alpha=0.7, beta=0.2, noise_step=500, seed=3))
    for step, got in enumerate(logits):
        main, other = (next_logits(model, one, tokens[:step]) for one in (inputs, noised))
        assert agrees(got, main, 1.7 * main - 0.7 * other, 0.2) > 0.1


def m3id_effects(model, inputs, confidence):
    tokens, logits = guarded(model, inputs, M3ID(decay=0.3, beta=0.1, confidence=confidence))
    for step, got in enumerate(logits):
        main, blind = (next_logits(model, one, tokens[:step]) for one in (inputs, without_image(inputs)))
        forgotten = math.exp(-0.3 * (step + 1))
        weight = (1 - forgotten) / forgotten
        if confidence < 1 and float(main.softmax(-1).max()) >= confidence:
            weight = 0.0
        yield agrees(got, main, main + weight * (main - blind), 0.1)


def test_m3id():
    model, inputs = tiny("llava")
    assert min(m3id_effects(model, inputs, 1.0)) > 0.1


def test_m3id_leaves_rows_alone_that_are_sure():
    model, _ = tiny("llava")
    for text in range(4, 14):  # until the gate is shut at one step and open at another
        inputs = inputs_for("llava", model, text=text)
        sure = float(next_logits(model, inputs, ()).softmax(-1).max())
        effects = list(m3id_effects(model, inputs, 0.99 * sure))
        if max(effects) > 0.1:
            break
    assert min(effects) == 0.0
    assert max(effects) > 0.1


@pytest.mark.parametrize("blank", ["none", "unk", "both"])
def test_vdd(blank):
    model, inputs = tiny("llava")
    tokens, logits = guarded(model, inputs, VDD(alpha=0.8, blank=blank))
    for step, got in enumerate(logits):
        main = next_logits(model, inputs, tokens[:step])
        none = next_logits(model, without_image(inputs), tokens[:step])
        unk = next_logits(model, without_image(inputs, 3), tokens[:step])
        other = {"none": none, "unk": unk, "both": (none + unk) / 2}[blank]
        assert agrees(got, main, 1.8 * main - 0.8 * other, 0.1) > 0.1


@pytest.mark.parametrize("place", ["before_image", "after_image"])
def test_icd(place):
    model, inputs = tiny("llava")
    ids = inputs["input_ids"][0].tolist()
    extra = Words()("be vague")["input_ids"]
    at = ids.index(IMAGE_TOKEN) + (25 if place == "after_image" else 0)
    longer = torch.tensor([[*ids[:at], *extra, *ids[at:]]])
    disturbed = {**inputs, "input_ids": longer, "attention_mask": torch.ones_like(longer)}
    tokens, logits = guarded(model, inputs, ICD(alpha=0.9, instruction="be vague", place=place))
    for step, got in enumerate(logits):
        main, other = (next_logits(model, one, tokens[:step]) for one in (inputs, disturbed))
        assert agrees(got, main, 1.9 * main - 0.9 * other, 0.1) > 0.1
