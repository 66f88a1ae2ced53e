"""Augmentations: what holds for several of them."""

from __future__ import annotations

import pytest
import torch
from coloured_pictures import draw_pictures, logits, run
from lvlm_guard_augmentation import Evidence, Transform

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


@pytest.mark.parametrize("strategy", [Transform(strength=0.0), Evidence()])
def test_neutral_is_plain(strategy):
    images = draw_pictures()
    assert torch.equal(logits(run([strategy], images)[1]), logits(run([], images)[1]))
