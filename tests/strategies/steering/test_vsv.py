"""|x| norm(norm(x) + w norm(d)), w = strength (1 + max(0, cos(x, -d))); d is the prompt with the image minus without."""

from __future__ import annotations

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from fitted import turn_towards, unit, without_image
from lvlm_guard_steering import VSV
from twin import Twin

from lvlm_guard import Guard, StrategyRefused
from lvlm_guard.testing import ARCHITECTURES as KNOWN
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words, ragged


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_vsv(architecture):
    strength = 0.8

    def gold(model, inputs, prefix):
        positive, negative = Twin(model), Twin(model)
        positive.next(inputs)
        negative.next(without_image(inputs))
        directions = {layer: positive.hidden[layer][0, -1] - negative.hidden[layer][0, -1] for layer in (1, 2, 3)}

        def turn_output(layer, _, x):
            d = directions[layer + 1]
            away = (-(x * d).sum(-1, keepdim=True) / (x.norm(dim=-1, keepdim=True) * d.norm())).clamp(min=0)
            return turn_towards(x, strength * (1 + away) * unit(d))

        return Twin(model, mlp=turn_output).next(inputs, prefix), positive.next(inputs, prefix)

    check([VSV(strength=strength)], gold, architecture)


class TestVSV(BundledContract):
    strategy = VSV(strength=0.8)


@pytest.mark.parametrize("architecture", [name for name in ("mllama", "qwen3_5") if name in KNOWN])
def test_vsv_where_the_image_misses_layers(architecture):
    """Cross-attention layers that a prompt without image skips, and early layers that the image has not reached."""
    model, _ = tiny(architecture)
    singles, batch = ragged(architecture, model)
    settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    guard = Guard(model, Words(), [VSV(strength=0.8)])
    plain, together = (call(**batch, **settings).logits[0] for call in (model.generate, guard.generate))
    assert float((together - plain).abs().max()) > 0.1
    for row, one in enumerate(singles):
        assert torch.allclose(guard.generate(**one, **settings).logits[0][0], together[row], atol=1e-4)


def test_vsv_needs_an_image():
    model, inputs = tiny("llava")
    with pytest.raises(StrategyRefused, match="'vsv' needs an image: pass one"):
        Guard(model, Words(), [VSV()]).generate(**without_image(inputs), max_new_tokens=2)


def test_the_report_counts_the_prefixes_of_vsv():
    model, inputs = tiny("llava")
    guard = Guard(model, None, [VSV()])
    guard.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert guard.report.forwards.prefill == 3
