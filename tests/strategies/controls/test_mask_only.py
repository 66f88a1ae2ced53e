"""z on tokens with p >= beta max(p); the others are demoted."""

from __future__ import annotations

import math

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from lvlm_guard_controls import MaskOnly
from twin import Twin


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_mask_only(architecture):
    demoted = []

    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        keep = main >= main.max() + math.log(0.3)
        demoted.append(int((~keep).sum()))
        return torch.where(keep, main, main - 1e4), main

    check([MaskOnly(beta=0.3)], gold, architecture, power=-1.0)
    assert min(demoted) > 50


class TestMaskOnly(BundledContract):
    strategy = MaskOnly()
    architectures = ("llava",)  # nothing of it depends on the model
