"""(1 + alpha) z - alpha mean(z') on plausible tokens; z' without the image, with an unknown token in its place, or both."""

from __future__ import annotations

import pytest
from bundled import BundledContract
from contrast_formulas import measure_effect, run_guarded, without_image
from lvlm_guard_contrastive import VDD

from lvlm_guard.testing import tiny
from lvlm_guard.testing.recompute import next_logits


class TestVDD(BundledContract):
    strategy = VDD()


@pytest.mark.parametrize("blank", ["none", "unk", "both"])
def test_vdd(blank):
    model, inputs = tiny("llava")
    tokens, logits = run_guarded(model, inputs, VDD(alpha=0.8, blank=blank))
    for step, got in enumerate(logits):
        main = next_logits(model, inputs, tokens[:step])
        none = next_logits(model, without_image(inputs), tokens[:step])
        unk = next_logits(model, without_image(inputs, 3), tokens[:step])
        other = {"none": none, "unk": unk, "both": (none + unk) / 2}[blank]
        assert measure_effect(got, main, 1.8 * main - 0.8 * other, 0.1) > 0.1
