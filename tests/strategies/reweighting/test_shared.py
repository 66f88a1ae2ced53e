"""Attention re-weighting: what holds for several strategies."""

from __future__ import annotations

import pytest
from gold import by_hand
from lvlm_guard_reweighting import ADHH, PAI, VAF
from lvlm_guard_reweighting.adhh import LLAVA_1_5_7B

from lvlm_guard import Guard, InputError, StrategyRefused
from lvlm_guard.testing import tiny


@pytest.mark.parametrize(("strategy", "named"), [
    (PAI(layers=(2, 9)), "decoder of 3 layers"), (VAF(layers=(2, 1)), "decoder of 3 layers"),
    (ADHH(heads=((0, 4),)), "Head 4"), (ADHH(heads=LLAVA_1_5_7B), "decoder of 3 layers"),
])  # fmt: skip
def test_layers_and_heads_outside_the_model_are_named(strategy, named):
    model, inputs = tiny("llava")
    with pytest.raises(InputError, match=named):
        Guard(model, None, [strategy]).generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("strategy", [PAI(gamma=1.0), VAF()])
def test_a_prompt_without_an_image_is_refused(strategy):
    model, inputs = tiny("llava")
    with pytest.raises(StrategyRefused, match="no image"):
        Guard(model, None, [strategy]).generate(**by_hand("blind", inputs), max_new_tokens=2)
