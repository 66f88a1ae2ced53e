"""Searches: what holds for both."""

from __future__ import annotations

import pytest
import torch
from lvlm_guard_search import OPERA, Rank

from lvlm_guard import Guard
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words, left_padded
from lvlm_guard.testing.tiny import inputs_for

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


def ragged(architecture):
    model, _ = tiny(architecture)
    singles = [inputs_for(architecture, model, 1, text=text, seed=text) for text in (3, 6, 11)]
    return model, singles, left_padded(singles)


@pytest.mark.parametrize("strategy", [OPERA(weight=0.0), Rank(max_candidates=0)])
def test_neutral_runs_generates_own_loop(strategy):
    model, _, batch = ragged("llava")
    settings = {"max_new_tokens": 4, "output_scores": True, "return_dict_in_generate": True, "num_beams": 2}
    plain = model.generate(**batch, **settings)
    got = Guard(model, Words(), [strategy]).generate(**batch, **settings)
    assert torch.equal(got.sequences, plain.sequences)
    assert all(torch.equal(*pair) for pair in zip(got.scores, plain.scores, strict=True))
