"""z + (1 - g) / g (z - z') on plausible tokens, g = exp(-decay t), t = 1 for the first token; z' without the image."""

from __future__ import annotations

import math

from bundled import BundledContract
from contrast_formulas import measure_effect, run_guarded, without_image
from lvlm_guard_contrastive import M3ID

from lvlm_guard.testing import tiny
from lvlm_guard.testing.recompute import next_logits
from lvlm_guard.testing.tiny import inputs_for


class TestM3ID(BundledContract):
    strategy = M3ID(decay=0.5)  # visible at the first token


def m3id_effects(model, inputs, confidence):
    tokens, logits = run_guarded(model, inputs, M3ID(decay=0.3, beta=0.1, confidence=confidence))
    for step, got in enumerate(logits):
        main, blind = (next_logits(model, one, tokens[:step]) for one in (inputs, without_image(inputs)))
        forgotten = math.exp(-0.3 * (step + 1))
        weight = (1 - forgotten) / forgotten
        if confidence < 1 and float(main.softmax(-1).max()) >= confidence:
            weight = 0.0
        yield measure_effect(got, main, main + weight * (main - blind), 0.1)


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
