"""Scores s + alpha |s| on image keys; then z + (gamma - 1)(z - z') on plausible tokens; z' without image and edit."""

from __future__ import annotations

import math

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from gold import by_hand
from lvlm_guard_contrastive import M3ID, VDD
from lvlm_guard_reweighting import PAI
from pydantic import ValidationError
from twin import Twin

from lvlm_guard import Guard, Stack
from lvlm_guard.host.parameters import build
from lvlm_guard.testing import tiny


class TestPAI(BundledContract):
    strategy = PAI(alpha=1.0, gamma=2.0)


def parts(twin, length):
    """Which positions lie before, in and after the image, and which rows predict."""
    index, image = torch.arange(length), twin.image.nonzero().flatten()
    return index < image[0], twin.image[:length], index > image[-1], index >= twin.prompt - 1


def attentive(model, inputs, prefix, alpha, layers=range(3)):
    def lifted(layer, scores):
        _, image, _, predicting = parts(twin, scores.shape[-1])
        here = image & predicting[:, None] & (layer in layers)
        return scores + alpha * scores.abs() * here

    twin = Twin(model, scores=lifted)
    return twin.next(inputs, prefix)


def plausible(combined, main):
    return torch.where(main >= main.max() + math.log(0.1), combined, main - 1e4)


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize(("alpha", "gamma"), [(1.0, 1.0), (0.0, 2.5), (1.0, 2.5)])
def test_pai(architecture, alpha, gamma):
    def gold(model, inputs, prefix):
        main = attentive(model, inputs, prefix, alpha)
        if gamma > 1:
            blind = Twin(model).next(by_hand("blind", inputs), prefix)
            wanted = blind.log_softmax(-1) + gamma * (main.log_softmax(-1) - blind.log_softmax(-1))
            shift = main.logsumexp(-1) + (gamma - 1) * (main.logsumexp(-1) - blind.logsumexp(-1))
            main = plausible(wanted + shift, main)  # the same distribution, at the height of logits
        return main, Twin(model).next(inputs, prefix)

    check([PAI(alpha=alpha, gamma=gamma)], gold, architecture)


def test_pai_leaves_the_first_layers_alone():
    def gold(model, inputs, prefix):
        return attentive(model, inputs, prefix, 2.0, layers=(2,)), Twin(model).next(inputs, prefix)

    check([PAI(alpha=2.0, gamma=1.0, layers=(2 / 3, 1.0))], gold, "llava")


def test_pai_shares_its_branch_with_the_other_image_free_strategies():
    model, inputs = tiny("llava")
    guard = Guard(model, None, [PAI(), M3ID(), VDD(blank="none")])
    guard.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert guard.report.forwards.prefill == 2
    assert guard.report.rows_per_forward == 2


@pytest.mark.parametrize("wrong", [
    {"alpha": -0.1}, {"alpha": math.nan}, {"gamma": 0.5}, {"gamma": math.inf}, {"layers": (0.5,)},
    {"layers": (0.2, 1.5)}, {"layers": (-0.1, 1.0)},
])  # fmt: skip
def test_pai_refuses(wrong):
    with pytest.raises(ValidationError):
        build(PAI, wrong)


def test_whole_layers_stay_whole_layers_in_a_stack_file(tmp_path):
    file = tmp_path / "stack.toml"
    file.write_text('[[stack]]\nname = "pai"\nparams = {layers = [0, 1]}\n')
    (read,) = Stack.of(file)
    assert read.layers == (0, 1)
    assert all(isinstance(one, int) for one in read.layers)
