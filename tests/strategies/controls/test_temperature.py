"""(1 + alpha) z on plausible tokens: temperature 1 / (1 + alpha)."""

from __future__ import annotations

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from lvlm_guard_controls import Temperature
from twin import Twin

from lvlm_guard import Guard
from lvlm_guard.testing import tiny


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_temperature(architecture, beta):
    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        return torch.where(main.softmax(-1) >= beta * main.softmax(-1).max(), 2.5 * main, main - 1e4), main

    check([Temperature(alpha=1.5, beta=beta)], gold, architecture)


def test_temperature_is_a_contrast_with_a_branch_that_says_nothing():
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**inputs, **settings)
    guarded = Guard(model, None, [Temperature(alpha=1.0)]).generate(**inputs, **settings)
    assert torch.equal(plain.sequences, guarded.sequences)
    assert torch.allclose(torch.stack(guarded.logits), 2 * torch.stack(plain.logits))


class TestTemperature(BundledContract):
    strategy = Temperature()
    architectures = ("llava",)
