"""(1 + alpha) z - alpha z' on plausible tokens; z' for the image sqrt(a_t) x + sqrt(1 - a_t) noise."""

from __future__ import annotations

import math

import pytest
import torch
from bundled import BundledContract
from contrast_formulas import measure_effect, run_guarded
from lvlm_guard_contrastive import VCD
from lvlm_guard_contrastive.vcd import signal_share

from lvlm_guard.request.images import generator_for
from lvlm_guard.testing import tiny
from lvlm_guard.testing.recompute import next_logits


class TestVCD(BundledContract):
    strategy = VCD()


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
    tokens, logits = run_guarded(model, inputs, VCD(alpha=0.7, beta=0.2, noise_step=500, seed=3))
    for step, got in enumerate(logits):
        main, other = (next_logits(model, one, tokens[:step]) for one in (inputs, noised))
        assert measure_effect(got, main, 1.7 * main - 0.7 * other, 0.2) > 0.1
