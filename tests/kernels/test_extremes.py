"""Finite logits at the ends of their dtype: every kernel on every path gives what their definitions give, and no NaN."""

import itertools
import math

import pytest
import torch
from lvlm_guard_kernels import Combination, combine, divergence, launch, select
from lvlm_guard_kernels.combine import reference as combine_reference
from lvlm_guard_kernels.divergence import reference
from lvlm_guard_kernels.select import fused

VOCABULARY, SLICE = 300, 128
PARTS = {"first": slice(None, 2 * SLICE), "all": slice(None), "slice": slice(SLICE, 2 * SLICE)}


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.slow), 1000], ids=["whole rows", "slices"])
def cut(request, monkeypatch):
    """Rows as a whole, and in slices of 128 tokens."""
    monkeypatch.setattr(launch, "WIDTH", SLICE)
    monkeypatch.setattr(launch, "NARROW", SLICE)
    monkeypatch.setattr(launch, "count_processors", lambda device: request.param)


@pytest.fixture(params=["torch", "triton"])
def everywhere(request, monkeypatch):
    if request.param == "triton":
        request.getfixturevalue("on_triton")
    else:
        monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")


def draw(dtype, seed, where=None, end="min"):
    """Logits of two rows; the first has an end of its dtype in a part, both ends in turns for `both`."""
    values = torch.randn(2, 1, VOCABULARY, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)
    if where is not None:
        part = values[0, 0, PARTS[where]]
        part[:] = getattr(torch.finfo(dtype), "max" if end == "max" else "min")
        if end == "both":
            part[::2] = torch.finfo(dtype).max
    return values


FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
CASES = [
    *itertools.product([FLOAT], PARTS, ("min", "max", "both")),
    *((BRAIN, "slice", end) for end in ("min", "both")),
    (HALF, "first", "both"),
]


def assert_same(got, expected, **tolerance):
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-6, **tolerance)


@pytest.mark.parametrize(("dtype", "where", "end"), CASES)
def test_statistics_of_rows_at_the_ends_of_their_dtype(everywhere, cut, dtype, where, end):
    rows = draw(dtype, 0, where, end)
    exact = rows.double()
    p = exact.softmax(-1)
    got = divergence.statistics(rows)
    assert_same(got.entropy, torch.special.entr(p).sum(-1))
    assert_same(got.max_probability, p.amax(-1))
    assert_same(got.best, exact.amax(-1))
    assert_same(got.log_sum_exp, exact.logsumexp(-1))
    for name in ("entropy", "max_probability", "log_sum_exp"):
        assert_same(getattr(divergence, name)(rows), getattr(got, name))
        assert_same(getattr(reference, name)(rows), getattr(got, name))


@pytest.mark.parametrize(("dtype", "where", "end"), CASES)
def test_divergences_between_rows_at_the_ends_of_their_dtype(everywhere, cut, dtype, where, end):
    main, layers = draw(dtype, 0, where, end), torch.stack([draw(dtype, 1, where, end), draw(dtype, 2)])
    for mode in ("jensen_shannon", "released"):
        got = divergence.layer_divergence(main, layers, mode)
        assert not got.isnan().any()
        torch.testing.assert_close(got, reference.layer_divergence(main, layers, mode), rtol=1e-5, atol=1e-6)
    got = divergence.kl(main, layers[1])
    assert not got.isnan().any()
    torch.testing.assert_close(got, reference.kl(main, layers[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "where"), [*itertools.product([FLOAT], PARTS), (BRAIN, "slice"), (HALF, "first")])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.5, 1.5])
def test_what_main_rules_out_by_its_least_number_stays_so_under_weights(everywhere, cut, dtype, where, beta, alpha):
    main, branch = draw(dtype, 0, where), draw(dtype, 1, where)
    combination = Combination(main, [branch], [-alpha], 1 + alpha, beta, torch.zeros(VOCABULARY))
    got = combine(combination)
    assert not got.isnan().any()
    torch.testing.assert_close(got, combine_reference.combine(combination), rtol=1e-6, atol=1e-5)
    ruled_out = main == torch.finfo(dtype).min
    if dtype != torch.float16:  # whose least number is an ordinary one in fp32
        assert torch.equal(got[ruled_out], main.float()[ruled_out])
    picked = select(combination, greedy=True)
    assert not picked.broken.any()
    assert torch.equal(picked.ids, got[:, 0].argmax(-1))


@pytest.mark.parametrize(("dtype", "where", "end"), CASES)
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 0.9)])
def test_draws_from_rows_at_the_ends_of_their_dtype(everywhere, monkeypatch, dtype, where, end, top_k, top_p):
    monkeypatch.setattr(fused, "TILE", 512)
    monkeypatch.setattr(fused, "PIVOTS", 128)
    rows = draw(dtype, 0, where, end)
    drawn = select(Combination(rows), temperature=0.5, top_k=top_k, top_p=top_p, seed=3)
    scaled = rows[:, 0].float() / 0.5
    assert not drawn.broken.any()
    assert scaled[0, drawn.ids[0]] >= scaled[0].amax() - 30


@pytest.mark.parametrize("where", ["first", "all", "slice"])
def test_a_layer_with_plus_infinity_has_no_divergence_whatever_main_rules_out(everywhere, cut, where):
    main, layer = draw(FLOAT, 0), draw(FLOAT, 1)
    main[0, 0, PARTS[where]] = -math.inf
    layer[0, 0, :SLICE] = math.inf
    for got in (
        *(divergence.layer_divergence(main, layer[None], mode)[0] for mode in ("jensen_shannon", "released")),
        divergence.kl(main, layer),
        divergence.kl(layer, main),
    ):
        assert got.isnan().tolist() == [[True], [False]]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_more_sources_than_a_launch_takes_are_added_up_in_the_order_of_the_definition(everywhere, cut, beta):
    most = torch.finfo(FLOAT).max
    main, rest = draw(FLOAT, 0), [draw(FLOAT, seed) for seed in range(1, 4)]
    ends = [torch.full_like(main, most), torch.full_like(main, most)]
    combination = Combination(main, [*ends, *rest], [0.9, -0.9, 1.0, 0.5, -1.0], 1.0, beta)
    got = combine(combination)
    torch.testing.assert_close(got, combine_reference.combine(combination), rtol=1e-6, atol=1e-5)
    apart = [*rest, *ends], [1.0, 0.5, -1.0, 0.9, -0.9]
    assert (combine_reference.combine(Combination(main, *apart, 1.0, beta)) - got).abs().amax() > 0.1


@pytest.mark.parametrize(
    "function", [divergence.statistics, divergence.entropy, divergence.max_probability, divergence.log_sum_exp]
)
@pytest.mark.parametrize(
    "logits", [torch.ones(2, 3).long(), torch.ones(2, 3).to_sparse(), torch.ones(()), torch.ones(2, 0)]
)
def test_logits_that_have_no_statistics_are_refused(function, logits):
    with pytest.raises(ValueError, match="logits"):
        function(logits)


@pytest.mark.parametrize("other", [torch.ones(2, 3, device="meta"), torch.ones(1, 3), torch.ones(2, 3).long()])
def test_rows_of_different_kinds_do_not_diverge(other):
    for function in (divergence.kl, divergence.jensen_shannon):
        with pytest.raises(ValueError, match="logits"):
            function(torch.ones(2, 3), other)


@pytest.mark.parametrize(
    "rows", [torch.arange(3), torch.arange(2).int(), torch.arange(2, device="meta"), torch.ones(2)]
)
def test_ids_of_rows_that_do_not_fit_are_refused(rows):
    with pytest.raises(ValueError, match=r"rows must be int64 \(2,\) on cpu"):
        select(Combination(torch.ones(2, 5)), rows=rows)
