"""Combinations of several calls in one kernel call give what each gives alone."""

from __future__ import annotations

import lvlm_guard_kernels
import pytest
import torch
from lvlm_guard_kernels import Combination

from lvlm_guard.arithmetic.joining import combine_side_by_side

VOCAB = 17


def logits(seed, rows=1):
    return torch.randn(rows, 1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def contrast(seed, weight, beta=0.1, **parts):
    return Combination(logits(seed), [logits(seed + 100)], [-weight], 1.0 + weight, beta, **parts)


CASES = {
    "numbers": [contrast(1, 1.0), contrast(2, 1.0), contrast(3, 1.0)],
    "weights of their own": [contrast(1, 1.0), contrast(2, 0.5), contrast(3, torch.tensor([[0.25]]))],
    "two structures": [contrast(1, 1.0), Combination(logits(2), [logits(3), logits(4)], [0.5, -1.0]), contrast(5, 2.0)],
    "strictness": [contrast(1, 1.0, beta=0.1), contrast(2, 1.0, beta=0.5)],
    "bias": [contrast(seed, 1.0, bias=torch.arange(VOCAB) * 0.1 * seed) for seed in (1, 2)],
    "restriction": [contrast(seed, 1.0, keep=torch.arange(VOCAB) % (seed + 1) == 0) for seed in (1, 2)],
    "several rows": [Combination(logits(1, 2), [logits(2, 2)], [-0.5], 1.5), contrast(3, 1.0, beta=0.0)],
}


@pytest.mark.parametrize("combinations", CASES.values(), ids=CASES)
def test_together_equals_alone(combinations):
    together = combine_side_by_side(combinations)
    for combination, result in zip(combinations, together, strict=True):
        alone = lvlm_guard_kernels.combine(combination)
        assert torch.equal(result, alone)
        assert (result - combination.main).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "calls"), [("numbers", 1), ("weights of their own", 1), ("two structures", 2), ("strictness", 2)]
)
def test_equal_structures_share_a_call(name, calls, monkeypatch):
    counted = []
    combine = lvlm_guard_kernels.combine
    monkeypatch.setattr(lvlm_guard_kernels, "combine", lambda value: counted.append(value) or combine(value))
    combine_side_by_side(CASES[name])
    assert len(counted) == calls


def test_nothing_gives_nothing():
    assert combine_side_by_side([]) == []
