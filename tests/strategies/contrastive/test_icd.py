"""(1 + alpha) z - alpha z' on plausible tokens; z' under a disturbing instruction."""

from __future__ import annotations

import pytest
import torch
from bundled import BundledContract
from contrast_formulas import measure_effect, run_guarded
from lvlm_guard_contrastive import ICD

from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words
from lvlm_guard.testing.recompute import next_logits
from lvlm_guard.testing.tiny import IMAGE_TOKEN


class TestICD(BundledContract):
    strategy = ICD()


@pytest.mark.parametrize("place", ["before_image", "after_image"])
def test_icd(place):
    model, inputs = tiny("llava")
    ids = inputs["input_ids"][0].tolist()
    extra = Words()("be vague")["input_ids"]
    at = ids.index(IMAGE_TOKEN) + (25 if place == "after_image" else 0)
    longer = torch.tensor([[*ids[:at], *extra, *ids[at:]]])
    disturbed = {**inputs, "input_ids": longer, "attention_mask": torch.ones_like(longer)}
    tokens, logits = run_guarded(model, inputs, ICD(alpha=0.9, instruction="be vague", place=place))
    for step, got in enumerate(logits):
        main, other = (next_logits(model, one, tokens[:step]) for one in (inputs, disturbed))
        assert measure_effect(got, main, 1.9 * main - 0.9 * other, 0.1) > 0.1
