"""What the report says of every bundled strategy, with plain generate as the oracle."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace

import pytest
import torch
from book import ACTING, find_page, list_contracts, load
from gold import SUPPRESSED

from lvlm_guard import NoEffectWarning
from lvlm_guard.outputs import sequences
from lvlm_guard.testing import SequenceContract, tiny
from lvlm_guard.testing.sequences import TEXTS, pictures

ARCHITECTURE = "llava"
ROUNDING = 1e-5  # attention that is edited sums in another order
BASE = {"max_new_tokens": 4, "suppress_tokens": SUPPRESSED}
LOGITS = {"output_logits": True, "return_dict_in_generate": True}
MODES = {
    "greedy": {**LOGITS, "do_sample": False},
    "sampling": {**LOGITS, "do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "do_sample": False},
    "penalty": {**LOGITS, "do_sample": False, "repetition_penalty": 1.3},
}
SHARES = {"greedy": (0.999,), "sampling": (0.9,), "beams": (0.9,), "penalty": (0.9,)}
"""How far a strategy is moved towards its neutral values."""


@functools.cache
def contract_class(name):
    return list_contracts(load(find_page(name)))[0]


def is_searching(name):
    return issubclass(contract_class(name), SequenceContract)


@pytest.fixture
def contract(name, tmp_path):
    contract = contract_class(name)()
    contract.folder = tmp_path  # for artefacts
    return contract


def run(contract, strategy, settings):
    """Outputs of the guard and of plain generate, the entry of the report, and how often it was warned about."""
    model, inputs = tiny(ARCHITECTURE)
    if isinstance(contract, SequenceContract):
        guard = contract.guard(ARCHITECTURE, model, strategy)
        inputs = guard.inputs(images=pictures(), text=list(TEXTS))
    else:
        guard = contract.guard(model, strategy)
    torch.manual_seed(5)
    plain = model.generate(**inputs, **BASE, **{**getattr(contract, "baseline", {}), **settings})
    torch.manual_seed(5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NoEffectWarning)
        output = guard.generate(**inputs, **BASE, **settings)
    (entry,) = guard.report.strategies
    warned = sum(f"{entry.name!r} changed no" in str(warning.message) for warning in caught)
    return output, plain, entry, warned


def moved(contract, share):
    """The strategy moved towards its neutral values, where those are numbers."""
    is_number = all(isinstance(value, float) for value in type(contract.strategy).neutral.values())
    return contract._at(share) if is_number else contract.strategy


def same_answers(output, plain):
    left, right = sequences(output), sequences(plain)
    return left.shape == right.shape and torch.equal(left, right)


def same_logits(output, plain):
    if not hasattr(plain, "logits"):
        return same_answers(output, plain)
    pairs = zip(output.logits, plain.logits, strict=True)
    return all(torch.allclose(*pair, atol=ROUNDING, rtol=0) for pair in pairs)


def check(output, plain, entry, warned):
    if not entry.had_effect:
        assert same_answers(output, plain)
        assert same_logits(output, plain)
        assert entry.tokens_changed == 0
    if entry.tokens_changed == 0:
        assert same_answers(output, plain)
    assert warned == (not entry.had_effect)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in ACTING if not is_searching(name)])
def test_no_change_is_reported_only_where_the_answer_is_plain_generates(contract, mode):
    for share in SHARES[mode]:
        check(*run(contract, moved(contract, share), MODES[mode]))


@pytest.mark.parametrize("name", ACTING)
def test_a_strategy_that_changed_the_answer_is_reported(contract, name):
    output, plain, entry, warned = run(contract, contract.strategy, {"do_sample": False})
    check(output, plain, entry, warned)
    assert entry.had_effect
    if is_searching(name):
        assert not same_answers(output, plain), "no power"
        assert entry.tokens_changed is None


@pytest.mark.parametrize("name", ACTING)
def test_a_neutral_strategy_is_warned_about_and_is_plain_generate(contract, name):
    neutral = replace(contract.strategy, **(contract.neutral or contract.strategy.neutral))
    output, plain, entry, warned = run(contract, neutral, {**MODES["greedy"], "num_beams": 1})
    assert (entry.had_effect, entry.tokens_changed, warned) == (False, 0, 1)
    check(output, plain, entry, warned)
