"""`select` against its definition, against transformers' warpers and against known probabilities."""

import math

import pytest
import torch
import triton
import triton.language as tl
from lvlm_guard_kernels import DEMOTION, combine, paths
from lvlm_guard_kernels import rows as launching
from lvlm_guard_kernels.select import Selected, fused, noise, reference, select
from lvlm_guard_kernels.select.draw import Draw
from scipy.stats import chisquare
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

CONTRAST = {"weights": [-1.0], "main_weight": 2.0}


def logits(*shape, seed=0, dtype=torch.float32, scale=3.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(scale).to(dtype)


def draw_of(temperature=1.0, top_k=0, top_p=1.0, seed=0, step=0, greedy=False, rows=None):
    return Draw(temperature, top_k, top_p, seed, step, greedy, rows)


def defined(main, sources=(), weights=(), *, main_weight=1.0, beta=0.0, bias=None, keep=None, **draw):
    main, *sources = [one.reshape(len(one), 1, one.shape[-1]) for one in (main, *sources)]
    terms = {"main_weight": main_weight, "beta": beta, "bias": bias, "keep": keep}
    return Selected(*reference.select(main, sources, weights, draw_of(**draw), **terms))


def equal(one, other):
    return torch.equal(one.ids, other.ids) and torch.equal(one.broken, other.broken)


@pytest.fixture(autouse=True)
def few_passes(monkeypatch):
    """The interpreter pays by operation, so a pass tries many thresholds."""
    monkeypatch.setattr(fused, "TILE", 512)
    monkeypatch.setattr(fused, "PIVOTS", 128)


@pytest.fixture(params=["torch", "triton"])
def everywhere(request, monkeypatch):
    if request.param == "triton":
        yield request.getfixturevalue("on_triton")
    else:
        monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
        with paths() as ran:
            yield ran
        assert ran
        assert all(path.endswith(":torch") for path in ran)


def scene(vocabulary, rows, dtype, extra):
    main, branch = (logits(rows, 1, vocabulary, seed=seed, dtype=dtype) for seed in (1, 2))
    terms = {}
    if extra == "ties":
        main, branch = main.round(), branch.round()
    if extra == "equal":
        main, branch = torch.zeros_like(main), torch.zeros_like(branch)
    if extra == "rows":
        terms = {
            "weights": [torch.linspace(-2, 1, rows)[:, None]],
            "main_weight": torch.linspace(0.5, 2, rows)[:, None],
        }
    if extra == "terms":
        terms = {"keep": logits(vocabulary, seed=3) > -2, "bias": logits(rows, 1, vocabulary, seed=4, scale=1.0)}
    if extra == "holes":
        main[0, :, : vocabulary // 2] = -math.inf
        main[-1, :, 1:] = -math.inf
        main[rows // 2, :, vocabulary // 3 :] = -math.inf
    if extra == "views":
        main = logits(rows, 3, vocabulary + 5, seed=1, dtype=dtype)[:, -1:, 2 : vocabulary + 2]
    return main, branch, {**CONTRAST, **terms}


F32, F16, B16 = torch.float32, torch.float16, torch.bfloat16
MATRIX = [
    # vocabulary, rows, dtype, beta, temperature, top_k, top_p, extra
    (1, 3, F32, 0.1, 1.0, 1, 0.5, ""),
    (1, 1, F32, 0.0, 1.0, 0, 1.0, ""),
    (111, 0, B16, 0.1, 1.0, 5, 0.9, ""),
    (111, 17, F32, 1e-9, 2.0, 0, 1.0, "terms"),
    (111, 17, B16, 0.0, 1.3, 7, 0.8, "ties"),
    (111, 3, F16, 1.0, 0.2, 2, 0.1, "ties"),
    (111, 3, F32, 0.1, 1.0, 0, 0.35, "equal"),
    (111, 3, F32, 0.0, 1.0, 9, 0.9, "equal"),
    (111, 17, F32, 0.1, 0.7, 3, 0.0, "rows"),
    (4097, 17, F16, 0.1, 1.0, 0, 0.9, "ties"),
    (4097, 3, F32, 1e-9, 1.5, 40, 0.95, "holes"),
    (4097, 3, B16, 1.0, 1.0, 0, 1.0, "terms"),
    (4097, 1, F32, 0.01, 1e-3, 5000, 0.5, "views"),
    (32000, 3, B16, 0.1, 0.7, 50, 0.9, "rows"),
    (32000, 1, F32, 1e-9, 1.0, 0, 0.9, ""),
    (32001, 3, F32, 0.1, 1.0, 20, 1.0, "terms"),
    (32001, 1, F16, 0.0, 1.0, 0, 1.0, "views"),
]


@pytest.mark.parametrize(("vocabulary", "rows", "dtype", "beta", "temperature", "top_k", "top_p", "extra"), MATRIX)
def test_the_token_is_the_one_of_the_definition(
    everywhere, monkeypatch, vocabulary, rows, dtype, beta, temperature, top_k, top_p, extra
):
    monkeypatch.setattr(fused, "TILE", 8192 if vocabulary > 8192 else 512)
    monkeypatch.setattr(fused, "PIVOTS", 16 if vocabulary > 8192 else 128)
    main, branch, terms = scene(vocabulary, rows, dtype, extra)
    settings = {"beta": beta, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": 2**40 + 7, **terms}
    settings["step"] = 2**31 + 5 if rows > 1 else 4
    got = select(main, [branch], **settings)
    assert equal(got, defined(main, [branch], **settings))
    assert not got.broken.any()
    assert everywhere[0].startswith("select:")


@pytest.mark.parametrize("beta", [0.0, 1e-9, 0.1, 1.0])
@pytest.mark.parametrize("extra", ["", "ties", "holes", "terms"])
def test_greedy_is_the_argmax_of_the_combined_logits(everywhere, beta, extra):
    main, branch, terms = scene(4097, 5, torch.float32, extra)
    got = select(main, [branch], beta=beta, greedy=True, temperature=0.1, top_k=3, top_p=0.1, **terms)
    combined = combine(main, [branch], beta=beta, **terms)[:, 0]
    assert torch.equal(got.ids, combined.argmax(-1))
    if extra == "ties" and beta < 1.0:
        assert ((combined == combined.amax(-1, keepdim=True)).sum(-1) > 1).any()


def processed(scores, temperature, top_k, top_p):
    """Which tokens transformers leaves with a probability."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers(None, scores).softmax(-1) > 0


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 0, 0.9), (1.3, 40, 1.0), (2.0, 15, 0.6), (1.0, 3, 0.0)]
)
def test_what_can_be_drawn_is_what_transformers_leaves(beta, tied, temperature, top_k, top_p):
    main, branch = logits(64, 1, 500, seed=5), logits(64, 1, 500, seed=6)
    if tied:
        main, branch = main.round(), branch.round()
    combined = combine(main, [branch], beta=beta, **CONTRAST)
    wanted = processed(combined[:, 0], temperature, top_k, top_p)
    scores = reference.plausible(combined, main, beta, None)[:, 0]
    got = reference.gaps(scores, draw_of(temperature, top_k, top_p)).softmax(-1) > 0
    assert torch.equal(got.sum(-1), wanted.sum(-1))
    if tied:  # transformers sorts without order among equals
        assert torch.equal(*[combined[:, 0].masked_fill(~one, -math.inf).sort(-1).values for one in (got, wanted)])
    else:
        assert torch.equal(got, wanted)
    if 0 < top_p < 1:
        assert len(set(wanted.sum(-1).tolist())) > 1


def chances(scores, temperature, top_k, top_p):
    allowed = processed(scores, temperature, top_k, top_p)
    return (scores.double() / temperature).masked_fill(~allowed, -math.inf).softmax(-1)


@pytest.mark.parametrize("keyed", ["rows", "steps", "seeds"])
@pytest.mark.parametrize(("beta", "temperature", "top_k", "top_p"), [(0.01, 1.0, 0, 1.0), (0.0, 1.6, 40, 0.95)])
def test_draws_are_distributed_as_the_softmax_of_what_is_left(keyed, beta, temperature, top_k, top_p):
    main, branch = logits(1, 80, seed=7, scale=1.5), logits(1, 80, seed=8, scale=0.5)
    settings = {"beta": beta, "temperature": temperature, "top_k": top_k, "top_p": top_p, **CONTRAST}
    each = 2000 if keyed == "rows" else 50
    drawn = torch.cat(
        [
            select(
                main.expand(each, -1),
                [branch.expand(each, -1)],
                rows=torch.arange(each) + (2**33 + each * turn if keyed == "rows" else 0),
                step=turn if keyed == "steps" else 3,
                seed=turn if keyed == "seeds" else 11,
                **settings,
            ).ids
            for turn in range(12000 // each)
        ]
    )
    counts = torch.bincount(drawn, minlength=80)
    combined = combine(main[:, None], [branch[:, None]], beta=beta, **CONTRAST)[0]
    wanted = chances(combined, temperature, top_k, top_p)[0]
    other = chances(combined, temperature * 1.2, top_k, top_p)[0]
    assert not counts[wanted == 0].any()
    assert (wanted > 0).sum() > 10
    assert fit(counts, wanted) > 1e-3
    assert fit(counts, other) < 1e-6


def fit(counts, chance):
    """p-value of chi-squared; tokens too rare to count stand together."""
    expected = chance * counts.sum()
    common = expected >= 5
    seen = [*counts[common].tolist(), counts[~common].sum().item()]
    wanted = [*expected[common].tolist(), expected[~common].sum().item()]
    keep = slice(None) if wanted[-1] >= 5 else slice(-1)
    return chisquare(seen[keep], torch.tensor(wanted[keep]).mul(sum(seen[keep]) / sum(wanted[keep])).tolist()).pvalue


def test_a_draw_depends_on_seed_step_and_row_id_and_on_no_other_row(everywhere):
    main, branch = logits(6, 300), logits(6, 300, seed=1)
    settings = {"beta": 1e-4, "temperature": 9.0, "top_k": 100, "top_p": 0.99, **CONTRAST}
    first = select(main, [branch], seed=5, step=2, **settings)
    assert equal(first, select(main, [branch], seed=5, step=2, **settings))
    for other in (
        {"seed": 6, "step": 2},
        {"seed": 5, "step": 3},
        {"seed": 5, "step": 2, "rows": torch.arange(6) + 1},
        {"seed": 5, "step": 2, "rows": torch.arange(6) + 2**32},
    ):
        assert (select(main, [branch], **other, **settings).ids != first.ids).sum() > 3
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    shuffled = select(main[order], [branch[order]], seed=5, step=2, rows=order, **settings)
    assert torch.equal(shuffled.ids, first.ids[order])
    alone = select(main[4:5], [branch[4:5]], seed=5, step=2, rows=torch.tensor([4]), **settings)
    assert alone.ids[0] == first.ids[4]


@pytest.mark.parametrize("vocabulary", [111, 1271])
def test_neither_slices_nor_tiles_change_a_draw(on_triton, monkeypatch, vocabulary):
    main, branch = logits(2, vocabulary).round(), logits(2, vocabulary, seed=1).round()
    settings = {"beta": 1e-3, "temperature": 1.5, "top_k": 25, "top_p": 0.8, "seed": 9, **CONTRAST}
    wanted = defined(main, [branch], **settings)
    for wide, tile, pivots in ((128, 64, 2), (1024, 128, 4), (8192, 1024, 16)):
        monkeypatch.setattr(launching, "WIDTH", wide)
        monkeypatch.setattr(fused, "TILE", tile)
        monkeypatch.setattr(fused, "PIVOTS", pivots)
        assert equal(select(main, [branch], **settings), wanted)


@pytest.mark.parametrize(
    ("beta", "top_k", "top_p", "tied"),
    [(0.0, 0, 1.0, True), (1e-7, 30, 1.0, True), (1e-7, 0, 0.7, False), (0.0, 0, 0.7, True), (0.0, 200, 0.9, True)],
)
def test_more_survivors_than_one_tile_holds_change_nothing(on_triton, monkeypatch, beta, top_k, top_p, tied):
    monkeypatch.setattr(fused, "TILE", 64)
    main, branch = logits(2, 700, scale=2.0), logits(2, 700, seed=1)
    if tied:
        main, branch = main.round(), branch.round()
    settings = {"beta": beta, "top_k": top_k, "top_p": top_p, "temperature": 3.0, "seed": 3, **CONTRAST}
    survivors = combine(main[:, None], [branch[:, None]], beta=beta, **CONTRAST) > -DEMOTION / 2
    assert (survivors.sum(-1) > 4 * fused.TILE).all()
    assert equal(select(main, [branch], **settings), defined(main, [branch], **settings))
    assert equal(select(main, [branch], greedy=True, **settings), defined(main, [branch], greedy=True, **settings))


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_row_of_nan_or_without_tokens_is_broken_and_no_other(everywhere, beta, greedy):
    main, branch = logits(17, 300), logits(17, 300, seed=1)
    keep = torch.ones(17, 300, dtype=torch.bool)
    sound = select(main, [branch], beta=beta, greedy=greedy, keep=keep, top_k=9, top_p=0.9, **CONTRAST)
    main[1, 200] = math.nan
    main[3] = -math.inf
    keep[5] = False
    main[7, 4], keep[7, 4] = math.nan, False
    branch[9, main[9].argmax()] = math.nan
    got = select(main, [branch], beta=beta, greedy=greedy, keep=keep, top_k=9, top_p=0.9, **CONTRAST)
    hit = torch.tensor([1, 3, 5, 9])
    others = torch.tensor([row for row in range(17) if row not in (1, 3, 5, 7, 9)])
    assert (got.ids[hit] == -1).all()
    assert got.broken[hit].all()
    assert torch.equal(got.ids[others], sound.ids[others])
    assert got.broken.sum() == len(hit)
    assert got.ids[7] >= 0


def test_a_row_without_tokens_is_broken_where_few_survive_elsewhere(everywhere):
    main, keep = logits(40, 300, scale=9.0), torch.ones(40, 300, dtype=torch.bool)
    keep[5] = False
    got = select(main, beta=0.1, keep=keep, temperature=2.0)
    assert got.broken.nonzero().tolist() == [[5]]
    assert got.ids[5] == -1


@pytest.mark.parametrize("greedy", [False, True])
def test_an_implausible_token_is_drawn_only_where_no_plausible_one_stands(everywhere, greedy):
    main = torch.tensor([[0.0, -0.5, -20.0, -20.5, -21.0]]).expand(4, -1)
    far = torch.tensor([[3 * DEMOTION, 3 * DEMOTION, 0.0, 0.0, 0.0]]).expand(4, -1)
    below = combine(main[:, None], [far[:, None]], [-1.0], beta=0.1)
    assert (below.argmax(-1) == 2).all()
    assert (select(main, [far], [-1.0], beta=0.1, greedy=greedy).ids < 2).all()
    banned = torch.tensor([-math.inf, -math.inf, 0.0, 0.0, 0.0])
    got = select(main, beta=0.1, bias=banned, greedy=greedy, top_k=2)
    assert equal(got, defined(main, beta=0.1, bias=banned, greedy=greedy, top_k=2))
    assert set(got.ids.tolist()) <= ({2} if greedy else {2, 3})


def test_an_infinite_logit_is_certain(everywhere):
    main = logits(3, 50)
    main[1, 17] = math.inf
    got = select(main, beta=0.1, temperature=3.0, top_k=5, top_p=0.9)
    assert got.ids[1] == 17
    assert not got.broken.any()


def test_of_equal_scores_the_lowest_ids_stay(everywhere):
    main = torch.zeros(24, 8)
    main[:, :2] = -50
    drawn = select(main, top_p=0.5).ids
    assert set(drawn.tolist()) == {2, 3, 4}
    assert set(select(main, top_p=0.0).ids.tolist()) == {2}
    assert set(select(main, greedy=True).ids.tolist()) == {2}


def test_logits_may_come_without_positions_and_with_any_strides(everywhere):
    wide = logits(4, 3, 222)
    main, branch = wide[:, 1, ::2], wide[:, 2, 1::2]
    weight = torch.tensor([-1.0, 0.5, -2.0, 0.0])
    settings = {"beta": 0.01, "main_weight": 1.5, "top_p": 0.9}
    got = select(main, [branch], [weight], bias=wide[:, 0, ::2], **settings)
    same = select(
        main[:, None].clone(), [branch[:, None].clone()], [weight[:, None]], bias=wide[:, :1, ::2], **settings
    )
    assert equal(got, same)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": math.nan}, "temperature must be positive"),
        ({"top_k": -1}, "top_k must be at least 1"),
        ({"top_p": 1.5}, "top_p must lie between 0 and 1"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        select(logits(2, 10), **settings)


def test_several_positions_are_refused():
    with pytest.raises(ValueError, match="one position"):
        select(logits(2, 3, 10))


KNOWN = [  # key, counter and first word: known answers published with Random123
    (0x0, (0x0, 0x0, 0x0, 0x0), 0x6627E8D5),
    (2**64 - 1, (2**32 - 1,) * 4, 0x408F276D),
    (0x299F31D0A4093822, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0xD16CFE09),
]


@pytest.mark.parametrize(("seed", "counter", "word"), KNOWN)
def test_philox_gives_the_published_numbers(seed, counter, word):
    assert noise.philox(seed, *[torch.tensor([one]) for one in counter]).tolist() == [word]


@triton.jit
def _draw_noise(words, uniform, ours, seed, step, name):
    token = tl.arange(0, 4096)
    word, _, _, _ = tl.philox(seed, token, token * 0 + step, token * 0, token * 0)
    tl.store(words + token, word.to(tl.int64))
    tl.store(uniform + token, tl.rand(seed, token))
    tl.store(ours + token, fused._gumbel(seed, step, name, token))


def test_noise_is_the_same_in_triton():
    words, uniform, ours = torch.empty(4096, dtype=torch.int64), torch.empty(4096), torch.empty(4096)
    token, zero = torch.arange(4096), torch.zeros(4096, dtype=torch.int64)
    for seed, step, name in ((0, 0, 5), (2**63 - 1, 77, 2**40 + 3), (-5, 2**31 - 1, 0)):
        _draw_noise[1,](words, uniform, ours, seed, step, name)
        assert torch.equal(words, noise.philox(seed, token, zero + step, zero, zero))
        assert torch.equal(uniform, noise.fraction(noise.philox(seed, token, zero, zero, zero)))
        wanted = noise.gumbel(seed, step, torch.tensor([name]), token[None])[0]
        assert torch.allclose(ours, wanted, rtol=1e-6, atol=1e-6)


@triton.jit
def _make_noise(words, ours, count: tl.constexpr):
    at = tl.arange(0, count)
    tl.store(ours + at, fused._standard(tl.load(words + at).to(tl.uint32)))


def test_noise_is_finite_and_exact_at_both_ends():
    words = torch.tensor([0, 1, 2, 100, 2**31 - 1, 2**31, 2**31 + 100, 2**32 - 1])
    uniform = noise.fraction(words).double().clamp(2**-31, 1 - 2**-24)
    wanted = (-(-torch.log1p(-uniform)).log()).float()
    ours = torch.empty(8)
    _make_noise[1,](words, ours, 8)
    assert wanted.max() > 21
    assert torch.allclose(noise.standard(words), wanted, rtol=1e-6)
    assert torch.allclose(ours, wanted, rtol=1e-6)
