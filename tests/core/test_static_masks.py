"""Masks over static caches: the model's own code makes two of them, and the others are those it would have made."""

import pytest
import torch
from gold import SUPPRESSED, Against

from lvlm_guard import Guard
from lvlm_guard.forward import model_inputs
from lvlm_guard.forward.caches import OpeningMask, static_masks
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import ragged

SETTINGS = {
    "max_new_tokens": 6, "do_sample": False, "suppress_tokens": SUPPRESSED,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip
STATIC = {**SETTINGS, "cache_implementation": "static"}


def generate_counted(monkeypatch, attention, settings):
    """Return the outputs under a growing and a static cache, and how many masks the model made for the latter."""
    model, _ = tiny("llava")
    model.set_attn_implementation(attention)
    inputs = ragged("llava", model)[1]
    guard = Guard(model, None, [Against("blind")])
    growing = guard.generate(**inputs, **SETTINGS)
    calls, expand = [], model_inputs.expand_mask
    monkeypatch.setattr(model_inputs, "expand_mask", lambda *args, **named: calls.append(1) or expand(*args, **named))
    return growing, guard.generate(**inputs, **settings), len(calls)


def apart(one, other):
    pairs = zip(one.logits, other.logits, strict=True)
    return max(float((mine - theirs).nan_to_num(nan=0.0).abs().max()) for mine, theirs in pairs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_two_masks_are_made_for_a_decode(monkeypatch, attention):
    growing, static, made = generate_counted(monkeypatch, attention, STATIC)
    assert made == 2
    assert apart(static, growing) < 1e-4


def test_a_position_that_stays_closed_is_noticed(monkeypatch):
    monkeypatch.setattr(static_masks, "_open", lambda mask, position: None)
    monkeypatch.setattr(static_masks, "_agree", lambda mask, other_mask: True)
    growing, static, _ = generate_counted(monkeypatch, "sdpa", STATIC)
    assert apart(static, growing) > 1e-2


def causal(past, *, window=None):
    """Return the mask of two rows, which share its memory."""
    mask = torch.zeros(1, 1, 1, 12, dtype=torch.bool)
    mask[..., 0 if window is None else past + 1 - window : past + 1] = True
    return mask.expand(2, -1, -1, -1)


def test_masks_that_close_positions_are_made_every_time():
    opening, made = OpeningMask(), []

    def make():
        made.append(1)
        return causal(past, window=3)

    for past in range(5, 10):
        assert torch.equal(opening.find(make, past, 1), causal(past, window=3))
    assert len(made) == 5


@pytest.mark.parametrize("steps", [[(5, 1), (6, 1), (7, 1), (6, 1), (7, 1)], [(5, 1), (6, 1), (7, 2), (9, 1), (10, 1)]])
def test_steps_back_and_several_tokens_at_once_get_masks_of_their_own(steps):
    opening = OpeningMask()
    for past, new in steps:
        expected = torch.cat([causal(past + query) for query in range(new)], dim=-2)
        assert torch.equal(opening.find(lambda mask=expected: mask, past, new), expected)
