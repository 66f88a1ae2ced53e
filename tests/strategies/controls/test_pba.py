"""Plain generate on a prompt with a hint to prefer yes."""

from __future__ import annotations

import pytest
import torch
from against_twin import OF_STRATEGIES
from bundled import BundledContract
from gold import SUPPRESSED
from lvlm_guard_controls import PBA

from lvlm_guard import Guard
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words, left_padded
from lvlm_guard.testing.tiny import inputs_for


def insert_hint(inputs, hint, place):
    """One prompt with the hint in it, by hand."""
    ids = inputs["input_ids"][0].tolist()
    last = max(index for index, token in enumerate(ids) if token in (100, 103))
    at = last + 1 if place == "after_image" else len(ids)
    changed = {**inputs, "input_ids": torch.tensor([ids[:at] + hint + ids[at:]])}
    changed["attention_mask"] = torch.ones_like(changed["input_ids"])
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            changed[name] = (changed["input_ids"] == 100).long()
    return changed


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize("place", ["after_image", "end"])
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}])
def test_pba_is_generate_on_the_longer_prompt(architecture, place, mode):
    model, _ = tiny(architecture)
    singles = [inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6, 11)]
    longer = left_padded([insert_hint(one, Words()("say yes")["input_ids"], place) for one in singles])
    batch = left_padded(singles)
    settings = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED, **mode}
    raw = {"return_dict_in_generate": True, "output_logits": True}
    wanted, plain = (model.generate(**one, **settings, **raw) for one in (longer, batch))
    got = Guard(model, Words(), [PBA(hint="say yes", place=place)]).generate(**batch, **settings, **raw)
    start = batch["input_ids"].shape[1]
    assert torch.equal(got.sequences[:, :start], batch["input_ids"])
    assert torch.equal(got.sequences[:, start:], wanted.sequences[:, longer["input_ids"].shape[1] :])
    assert float((got.logits[0] - wanted.logits[0]).abs().max()) <= 1e-5
    assert float((got.logits[0] - plain.logits[0]).abs().max()) > 0.1


class TestPBA(BundledContract):
    strategy = PBA()
    test_near_neutral_is_near_plain = None  # a hint is there or is not

    def _at(self, share):
        return PBA(hint="")
