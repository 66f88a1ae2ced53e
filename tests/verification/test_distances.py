"""How far logits are apart: in units of their spread, with forbidden tokens left out and disputes counted."""

import math

import pytest
import torch

from lvlm_guard.verification.distances import distance, effect, tolerance_of

PLAIN = torch.linspace(-3, 3, 200).repeat(2, 1)
SPREAD = float(PLAIN[0].std(correction=0))


def changed(row, token, value):
    logits = PLAIN.clone()
    logits[row, token] = value
    return logits


def test_a_difference_is_measured_by_the_spread_of_plain_logits():
    assert distance(changed(1, 7, PLAIN[1, 7] + 0.5), PLAIN, PLAIN) == pytest.approx(0.5 / SPREAD, rel=1e-5)
    assert distance(PLAIN, PLAIN, PLAIN) == 0


def test_the_spread_is_that_of_allowed_tokens():
    forbidden = PLAIN.clone()
    forbidden[:, 100:] = torch.finfo(torch.float32).min
    half = float(PLAIN[0, :100].std(correction=0))
    other = forbidden.clone()
    other[0, 3] += 0.5
    assert distance(other, forbidden, forbidden) == pytest.approx(0.5 / half, rel=1e-4)


def test_a_token_or_two_at_the_edge_are_left_out_and_more_are_a_difference():
    def forbid(count):
        logits = PLAIN.clone()
        logits[0, :count] = -1e4
        return logits

    assert distance(forbid(4), PLAIN, PLAIN) == 0
    assert distance(forbid(5), PLAIN, PLAIN) == 1
    assert distance(forbid(50), PLAIN, PLAIN, tolerance=0.25) == 0
    assert distance(forbid(60), PLAIN, PLAIN, tolerance=0.25) == 1
    assert effect(forbid(1), PLAIN) == 1


def test_a_nan_is_seen():
    assert math.isnan(distance(changed(0, 0, math.nan), PLAIN, PLAIN))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-4), (torch.float16, 0.03125), (torch.bfloat16, 0.25)])
def test_the_limit_follows_the_dtype(dtype, limit):
    assert tolerance_of(dtype) == limit
