"""Statistics of rows and divergences between them: reference, torch and Triton, against float64 by hand."""

import math
from dataclasses import astuple

import pytest
import torch
from lvlm_guard_kernels import divergence, launch
from lvlm_guard_kernels.divergence import eager, reference

INF = math.inf
MODES = ("jensen_shannon", "released")
FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
LAYERS = 2
CASES = [
    # vocabulary, rows, positions, dtype of main, dtype of layers, layout
    (1, 3, 1, FLOAT, BRAIN, "plain"),
    (111, 0, 1, HALF, HALF, "plain"),
    (111, 5, 1, BRAIN, BRAIN, "last positions"),
    (1000, 3, 3, FLOAT, HALF, "tokens apart"),
    (1271, 1, 3, HALF, FLOAT, "wider vocabulary"),
    pytest.param(4097, 3, 1, BRAIN, FLOAT, "every second", marks=pytest.mark.slow),
    pytest.param(32000, 1, 1, FLOAT, BRAIN, "last positions", marks=pytest.mark.slow),
    pytest.param(32001, 2, 1, BRAIN, BRAIN, "wider vocabulary", marks=pytest.mark.slow),
]


def chosen(request, monkeypatch):
    """The public functions, which run in what the parameter names, or what defines them."""
    if request.param == "triton":
        request.getfixturevalue("on_triton")
    else:
        monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    return reference if request.param == "reference" else divergence


run = pytest.fixture(chosen, params=["reference", "torch", "triton"], name="run")
public = pytest.fixture(chosen, params=["torch", "triton"], name="public")


@pytest.fixture
def narrow(monkeypatch):
    """Slices of 128 tokens, so that a short row has several."""
    monkeypatch.setattr(launch, "WIDTH", 128)
    monkeypatch.setattr(launch, "NARROW", 128)


def draw(*shape, seed=0, dtype=FLOAT):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def laid(values, layout):
    """The same logits as a view into a larger tensor whose other entries are NaN."""
    *leading, positions, vocabulary = values.shape
    if layout == "tokens apart":
        return values.transpose(-1, -3).contiguous().transpose(-1, -3)
    window, shape = {
        "plain": (..., values.shape),
        "last positions": ((..., slice(2, None), slice(None)), (*leading, positions + 2, vocabulary)),
        "wider vocabulary": ((..., slice(vocabulary)), (*leading, positions, vocabulary + 5)),
        "every second": (slice(None, None, 2), (2 * leading[0], *leading[1:], positions, vocabulary)),
    }[layout]
    view = torch.full(shape, math.nan, dtype=values.dtype)[window]
    view.copy_(values)
    return view


def kl_by_hand(p, q):
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def by_hand(main, layers, mode):
    p, q = main.double().softmax(-1), layers.double().softmax(-1)
    mean = (p + q) / 2
    if mode == "released":
        return kl_by_hand(mean, p) + kl_by_hand(mean, q)
    return (kl_by_hand(p, mean) + kl_by_hand(q, mean)) / 2


def statistics_by_hand(logits):
    p = logits.double().softmax(-1)
    return logits.double().logsumexp(-1), -torch.xlogy(p, p).sum(-1), p.amax(-1), logits.double().amax(-1)


def assert_same(got, expected, **tolerance):
    assert got.dtype == FLOAT
    torch.testing.assert_close(got, expected.float(), **{"rtol": 1e-5, "atol": 1e-6, "equal_nan": True, **tolerance})


def every_divergence(run, main, layers):
    """All divergences of rows from those of each layer, by name."""
    divergences = {mode: run.layer_divergence(main, layers, mode) for mode in MODES}
    return {**divergences, "kl": run.kl(main.expand_as(layers), layers)}


@pytest.mark.parametrize(("vocabulary", "rows", "positions", "dtype", "layer_dtype", "layout"), CASES)
def test_statistics_equal_float64(run, vocabulary, rows, positions, dtype, layer_dtype, layout):
    logits = laid(draw(rows, positions, vocabulary, dtype=dtype), layout)
    for got, expected in zip(astuple(run.statistics(logits)), statistics_by_hand(logits), strict=True):
        assert got.shape == (rows, positions)
        assert_same(got, expected)


def test_one_statistic_alone_is_the_same(run):
    logits = draw(2, 1, 300)
    expected = statistics_by_hand(logits)
    for name, value in zip(("log_sum_exp", "entropy", "max_probability"), expected, strict=False):
        assert_same(getattr(run, name)(logits), value)


@pytest.mark.parametrize(("vocabulary", "rows", "positions", "dtype", "layer_dtype", "layout"), CASES)
def test_divergences_equal_float64(run, vocabulary, rows, positions, dtype, layer_dtype, layout):
    main = laid(draw(rows, positions, vocabulary, dtype=dtype), layout)
    layers = laid(draw(LAYERS, rows, positions, vocabulary, seed=1, dtype=layer_dtype), layout)
    before = main.clone(), layers.clone()
    for mode in MODES:
        got = run.layer_divergence(main, layers, mode)
        assert got.shape == (LAYERS, rows, positions)
        assert_same(got, by_hand(main, layers, mode))
        assert vocabulary == 1 or (got > 0.1).all(), "rows drawn apart show no divergence"
    assert_same(run.kl(main, layers[1]), kl_by_hand(main.double().softmax(-1), layers[1].double().softmax(-1)))
    assert torch.equal(main, before[0])
    assert torch.equal(layers, before[1])


def test_layers_behind_their_rows_are_read_in_place(run):
    main, layers = draw(2, 2, 500), draw(2, LAYERS, 2, 500, seed=1).transpose(0, 1)
    assert not layers.is_contiguous()
    assert_same(run.layer_divergence(main, layers), by_hand(main, layers, "jensen_shannon"))


@pytest.mark.parametrize("shape", [(300,), (2, 300), (2, 1, 2, 300)])
def test_rows_may_have_any_leading_dimensions(run, shape):
    first, second = draw(*shape), draw(*shape, seed=1)
    got = run.layer_divergence(first, second[None])
    assert got.shape == (1, *shape[:-1])
    assert_same(got[0], by_hand(first, second, "jensen_shannon"))
    assert_same(run.entropy(first), statistics_by_hand(first)[1])


def test_jensen_shannon_is_symmetric_and_kl_is_not(public):
    first, second = draw(2, 1, 300), draw(2, 1, 300, seed=1)
    assert_same(public.jensen_shannon(first, second), by_hand(first, second, "jensen_shannon"))
    assert_same(public.jensen_shannon(first, second), public.jensen_shannon(second, first))
    assert (public.kl(first, second) - public.kl(second, first)).abs().min() > 1e-3


@pytest.mark.parametrize("processors", [1, 1000])
def test_slices_and_whole_rows_agree_with_float64(on_triton, narrow, monkeypatch, processors):
    from lvlm_guard_kernels.divergence import fused  # noqa: PLC0415 - Triton is imported under its fixture

    monkeypatch.setattr(launch, "count_processors", lambda device: processors)
    rising = torch.linspace(-40, 40, 300) + draw(300)
    main = torch.stack([rising, rising.flip(0), draw(300), rising - 1000])[:, None]
    layers = torch.stack([draw(4, 1, 300, seed=2), main + draw(4, 1, 300, seed=3)])
    assert fused._plan_cuts(4, main).parts == (1 if processors == 1 else 3)
    for got, expected in zip(astuple(divergence.statistics(main)), statistics_by_hand(main), strict=True):
        assert_same(got, expected)
    for mode in MODES:
        assert_same(divergence.layer_divergence(main, layers, mode), by_hand(main, layers, mode))


RULED_OUT = {
    "head tile": slice(0, 128),
    "tail tile": slice(256, 300),
    "halves of two tiles": slice(64, 192),
    "all but one": slice(1, 300),
}


OFTEN = "halves of two tiles", "all but one"
SOME_RULED_OUT = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in RULED_OUT]


@pytest.mark.parametrize("where", SOME_RULED_OUT)
def test_tokens_ruled_out_by_both_contribute_nothing(run, narrow, where):
    main, layers = draw(2, 1, 300), draw(LAYERS, 2, 1, 300, seed=1)
    main[..., RULED_OUT[where]] = layers[..., RULED_OUT[where]] = -INF
    inside = [token for token in range(300) if main[0, 0, token] > -INF]
    for got, expected in zip(astuple(run.statistics(main)), statistics_by_hand(main[..., inside]), strict=True):
        assert_same(got, expected)
    for name, got in every_divergence(run, main, layers).items():
        assert got.isfinite().all()
        assert_same(got, every_divergence(reference, main[..., inside], layers[..., inside])[name])


@pytest.mark.parametrize("where", SOME_RULED_OUT)
@pytest.mark.parametrize("of_main", [True, False])
def test_a_token_that_one_of_both_rules_out_is_far_but_not_infinitely_far_from_the_mean(run, narrow, where, of_main):
    main, layers = draw(2, 1, 300), draw(LAYERS, 2, 1, 300, seed=1)
    (main[0] if of_main else layers[1, 0])[..., RULED_OUT[where]] = -INF
    touched = torch.zeros(LAYERS, 2, 1, dtype=torch.bool)
    touched[slice(None) if of_main else 1, 0] = True
    got = every_divergence(run, main, layers)
    assert_same(got["jensen_shannon"], by_hand(main, layers, "jensen_shannon"))
    assert torch.equal(got["released"] == INF, touched)
    assert torch.equal(got["kl"] == INF, touched & (not of_main))
    assert_same(got["released"], by_hand(main, layers, "released"))
    assert_same(got["kl"], kl_by_hand(main.double().softmax(-1), layers.double().softmax(-1)))


def test_a_token_that_one_of_both_rules_out_counts_however_improbable_it_is_to_the_other(run):
    sure, almost = torch.tensor([[[0.0, 1.0, -INF]]]), torch.tensor([[[0.0, 1.0, -300.0]]])
    for main, layers in ((sure, almost[None]), (almost, sure[None])):
        assert run.layer_divergence(main, layers, "released").item() == INF
        assert run.layer_divergence(main, layers).item() < 1e-6
    assert run.kl(almost, sure).item() == INF
    assert run.kl(sure, almost).item() < 1e-6


def test_the_least_finite_number_rules_out_too(run, narrow):
    main, layers = draw(2, 1, 300), draw(LAYERS, 2, 1, 300, seed=1)
    expected = every_divergence(reference, main[..., 100:], layers[..., 100:])
    main[..., :100] = layers[..., :100] = torch.finfo(FLOAT).min
    for name, got in every_divergence(run, main, layers).items():
        assert_same(got, expected[name])


@pytest.mark.parametrize("value", [math.nan, pytest.param(-INF, marks=pytest.mark.slow)])
def test_a_row_without_a_distribution_is_nan_and_leaves_the_others_alone(run, narrow, value):
    main, layers = draw(3, 1, 300), draw(LAYERS, 3, 1, 300, seed=1)
    clean = {**every_divergence(run, main, layers)}
    statistics = astuple(run.statistics(main))
    main[0, 0, slice(None) if value == -INF else 70] = value
    layers[1, 2, 0, slice(None) if value == -INF else 299] = value
    broken = torch.zeros(LAYERS, 3, 1, dtype=torch.bool)
    broken[:, 0] = broken[1, 2] = True
    for name, got in every_divergence(run, main, layers).items():
        assert torch.equal(got.isnan(), broken), name
        assert_same(got[~broken], clean[name][~broken], rtol=1e-6)
    for got, before, at_nothing in zip(
        astuple(run.statistics(main)), statistics, (-INF, *[math.nan] * 2, -INF), strict=True
    ):
        assert_same(got[0], torch.tensor([at_nothing if value == -INF else math.nan]))
        assert torch.equal(got[1:], before[1:])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, which interprets the kernels, warns of inf - inf
@pytest.mark.parametrize("processors", [1, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_row_with_plus_infinity_has_a_best_logit_and_no_distribution(run, narrow, monkeypatch, processors):
    monkeypatch.setattr(launch, "count_processors", lambda device: processors)  # by which rows are whole, or in slices
    main, layers = draw(3, 1, 300), draw(LAYERS, 3, 1, 300, seed=1)
    main[0, 0, :128] += 10 * torch.arange(128)
    main[0, 0, 130] = INF
    got = run.statistics(main)
    assert got.best[0] == got.log_sum_exp[0] == INF
    assert (
        got.entropy.isnan().flatten().tolist() == got.max_probability.isnan().flatten().tolist() == [True, False, False]
    )
    assert run.log_sum_exp(main)[0] == INF
    assert run.max_probability(main)[0].isnan()
    for got in every_divergence(run, main, layers).values():
        assert torch.equal(got.isnan(), torch.tensor([True, False, False])[None, :, None].expand(LAYERS, 3, 1))


def test_equal_rows_do_not_diverge_however_they_are_shifted(run):
    main = draw(1, 1, 5000)
    layers = torch.stack([main, main + 64, main * 1.01])
    for got in every_divergence(run, main, layers).values():
        assert (got >= 0).all()
        assert got[0].max() < 1e-6
        assert got[1].max() < 1e-6
        assert got[2].min() > 1e-5, "a slight difference does not show"


def test_entropy_has_its_two_extremes(run):
    logits = torch.stack([torch.zeros(1000), torch.eye(1000)[3] * 200])
    assert_same(run.entropy(logits), torch.tensor([math.log(1000), 0.0]))
    assert_same(run.max_probability(logits), torch.tensor([1e-3, 1.0]))


@pytest.mark.parametrize("cached", [1, 700, 10**6])
def test_torch_takes_layers_in_portions_of_any_size(monkeypatch, cached):
    monkeypatch.setattr(eager, "CACHED", cached)
    main, layers = draw(1, 2, 150), draw(7, 1, 2, 150, seed=1)
    layers[2, 0, 0, :50] = -INF
    for mode in MODES:
        assert_same(eager.layer_divergence(main, layers, mode), by_hand(main, layers, mode))


def test_torch_needs_no_second_look_at_probabilities_that_vanish(monkeypatch):
    monkeypatch.setattr(reference, "layer_divergence", lambda *_: pytest.fail("everything was computed twice"))
    main, layers = draw(2, 1, 300) * 30, draw(LAYERS, 2, 1, 300, seed=1) * 30
    assert ((main.softmax(-1) == 0) & (layers.softmax(-1) == 0)).any()
    for mode in MODES:
        assert_same(eager.layer_divergence(main, layers, mode), by_hand(main, layers, mode))


def test_what_is_recorded_names_the_kernel(on_triton):
    divergence.entropy(draw(1, 1, 9))
    divergence.kl(draw(1, 1, 9), draw(1, 1, 9))
    assert on_triton == ["statistics:triton", "kl:triton"]


def test_what_does_not_fit_is_refused():
    main = draw(2, 1, 9)
    with pytest.raises(ValueError, match=r"\(2, 1, 8\) does not fit logits of shape \(2, 1, 9\)"):
        divergence.layer_divergence(main, draw(3, 2, 1, 8))
    with pytest.raises(ValueError, match="does not fit"):
        divergence.jensen_shannon(main, main[0])
    with pytest.raises(ValueError, match="neither 'jensen_shannon' nor 'released'"):
        divergence.layer_divergence(main, main[None], "kl")
    with pytest.raises(ValueError, match="no tokens"):
        divergence.entropy(main[..., :0])
