"""`combine` against arithmetic written out by hand: the reference, and what runs instead."""

import math

import lvlm_guard_kernels
import pytest
import torch
from lvlm_guard_kernels import DEMOTION, Combination
from lvlm_guard_kernels.combine import reference


@pytest.fixture(params=["reference", "torch", "triton"])
def combine(request, monkeypatch):
    """Return the definition or an implementation."""
    if request.param == "triton":
        request.getfixturevalue("on_triton")
    elif request.param == "torch":
        monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    return reference.combine if request.param == "reference" else lvlm_guard_kernels.combine


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [5, 127, 4099])
def test_a_weighted_sum_is_added_up_in_fp32(combine, dtype, vocabulary):
    main, branch = draw(2, 3, vocabulary, dtype=dtype), draw(2, 3, vocabulary, seed=1, dtype=dtype)
    weight = torch.tensor([[-0.5, -1.0, 0.0], [0.25, 2.0, -3.0]])
    got = combine(Combination(main, [branch], [weight], main_weight=2.0))
    expected = 2 * main.float() + weight[..., None] * branch.float()
    assert got.dtype == torch.float32
    assert torch.allclose(got, expected, atol=1e-5)


def test_implausible_tokens_are_demoted_and_keep_mains_order(combine):
    main = torch.tensor([[[0.0, -1.0, -9.0, -8.0]]])
    branch = torch.tensor([[[5.0, -5.0, -90.0, 90.0]]])
    got = combine(Combination(main, [branch], [-1.0], main_weight=2.0, beta=0.1))[0, 0]
    assert got[:2].tolist() == [-5.0, 3.0]
    assert got[2:].tolist() == [-9.0 - DEMOTION, -8.0 - DEMOTION]
    assert got.argmax() == 1


def test_the_threshold_keeps_ties(combine):
    main = torch.tensor([[[0.0, math.log(0.5), math.log(0.5) - 1e-3]]])
    got = combine(Combination(main, beta=0.5))[0, 0]
    assert (got > -DEMOTION / 2).tolist() == [True, True, False]


def test_plausibility_is_measured_inside_the_restriction(combine):
    main = torch.tensor([[[9.0, 1.0, 0.9, -9.0]]])
    keep = torch.tensor([False, True, True, True])
    got = combine(Combination(main, beta=0.5, keep=keep))[0, 0]
    assert got[0] == -math.inf
    assert torch.allclose(got[1:3], main[0, 0, 1:3])
    assert got[3] == -9.0 - DEMOTION


def test_a_bias_moves_survivors_only(combine):
    main = torch.tensor([[[0.0, -0.5, -20.0]]])
    got = combine(Combination(main, beta=0.1, bias=torch.tensor([0.0, 1.0, 50.0])))[0, 0]
    assert got.tolist() == [0.0, 0.5, -20.0 - DEMOTION]


def test_what_main_rules_out_stays_out_whatever_the_branch_says(combine):
    main = torch.tensor([[[0.0, -math.inf, 1.0]]])
    branch = torch.tensor([[[1.0, -math.inf, math.inf]]])
    got = combine(Combination(main, [branch], [-1.0], main_weight=2.0))[0, 0]
    assert got[1] == -math.inf
    assert not got[:2].isnan().any()


def test_nan_is_not_hidden(combine):
    main = draw(1, 1, 7)
    main[..., 3] = math.nan
    assert combine(Combination(main, beta=0.1)).isnan().all()
