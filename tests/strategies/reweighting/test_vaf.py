"""Scores times `enhance` on image keys and times `suppress` on keys before the image, for rows after the image."""

from __future__ import annotations

import math

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from gold import OLD
from lvlm_guard_reweighting import VAF
from pydantic import ValidationError
from twin import Twin

from lvlm_guard.host.parameters import build


class TestVAF(BundledContract):
    strategy = VAF(enhance=3.0, suppress=0.3, layers=(0, 3))


def parts(twin, length):
    """Which positions lie before, in and after the image, and which rows predict."""
    index, image = torch.arange(length), twin.image.nonzero().flatten()
    return index < image[0], twin.image[:length], index > image[-1], index >= twin.prompt - 1


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize(("enhance", "suppress"), [(3.0, 1.0), (1.0, 0.0), (3.0, 0.2)])
def test_vaf(architecture, enhance, suppress):
    def gold(model, inputs, prefix):
        def scaled(layer, scores):
            system, image, after, predicting = parts(twin, scores.shape[-1])
            factor = 1 + (enhance - 1) * image + (suppress - 1) * system
            rows = (after | predicting)[:, None] & (layer in (1, 2))
            return torch.where(rows, scores * factor, scores)

        twin = Twin(model, scores=scaled)
        return twin.next(inputs, prefix), Twin(model).next(inputs, prefix)

    check([VAF(enhance=enhance, suppress=suppress, layers=(1, 3))], gold, architecture, power=0.05 if OLD else 0.1)


@pytest.mark.parametrize("wrong", [{"enhance": -1.0}, {"suppress": math.nan}, {"layers": "middle"}])
def test_vaf_refuses(wrong):
    with pytest.raises(ValidationError):
        build(VAF, wrong)
