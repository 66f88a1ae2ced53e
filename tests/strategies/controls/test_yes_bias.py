"""z + strength on the first tokens of yes, z - strength on those of no, at the first token."""

from __future__ import annotations

import pytest
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from lvlm_guard_controls import YesBias
from pieces import Pieces
from twin import Twin

from lvlm_guard import Guard
from lvlm_guard.testing import tiny

YES, NO = [26, 44], [15, 33]  # "yes", "Yes", "no", "No" to the tests' tokenizer; " yes" and " no" begin alike


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize("strength", [1.5, -2.0])
def test_yes_bias(architecture, strength):
    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        pushed = main.clone()
        if not prefix:
            pushed[YES] += strength
            pushed[NO] -= strength
        return pushed, main

    check([YesBias(strength)], gold, architecture)


def bias_of(tokenizer, strategy):
    model, inputs = tiny("llava")
    settings = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**inputs, **settings)
    change = Guard(model, tokenizer, [strategy]).generate(**inputs, **settings).logits[0] - plain.logits[0]
    return {token: round(float(change[0, token]), 3) for token in change[0].nonzero().flatten().tolist()}


def test_tokens_that_begin_both_answers_or_are_unknown_are_left_alone():
    assert bias_of(Pieces(yes=20, no=21, Yes=22), YesBias(2.0)) == {20: 2.0, 21: -2.0, 22: 2.0}


class TestYesBias(BundledContract):
    strategy = YesBias()
