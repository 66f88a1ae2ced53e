"""`select` against its definition, against transformers' warpers and against known probabilities."""

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from lvlm_guard_kernels import DEMOTION, Combination, Selection, combine, launch, record_paths, select
from lvlm_guard_kernels.select import bounds, fused, noise, reference
from lvlm_guard_kernels.select import eager as select_eager
from lvlm_guard_kernels.select.draw import Draw
from scipy.stats import chisquare
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


def logits(*shape, seed=0, dtype=torch.float32, scale=3.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(scale).to(dtype)


def draw_of(temperature=1.0, top_k=0, top_p=1.0, seed=0, step=0, greedy=False, rows=None):
    return Draw(temperature, top_k, top_p, seed, step, greedy, rows)


def define(combination, **draw):
    """Select by the definition."""
    return Selection(*reference.select(combination.with_positions(), draw_of(**draw)))


def contrast(main, branch, **parts):
    return Combination(main, [branch], **{"weights": [-1.0], "main_weight": 2.0, **parts})


def equal(first, second):
    return torch.equal(first.ids, second.ids) and torch.equal(first.broken, second.broken)


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
        with record_paths() as ran:
            yield ran
        assert ran
        assert all(path.endswith(":torch") for path in ran)


def scene(vocabulary, rows, dtype, extra, beta):
    main, branch = (logits(rows, 1, vocabulary, seed=seed, dtype=dtype) for seed in (1, 2))
    parts = {}
    if extra == "ties":
        main, branch = main.round(), branch.round()
    if extra == "equal":
        main, branch = torch.zeros_like(main), torch.zeros_like(branch)
    if extra == "rows":
        parts = {
            "weights": [torch.linspace(-2, 1, rows)[:, None]],
            "main_weight": torch.linspace(0.5, 2, rows)[:, None],
        }
    if extra == "terms":
        parts = {"keep": logits(vocabulary, seed=3) > -2, "bias": logits(rows, 1, vocabulary, seed=4, scale=1.0)}
    if extra == "holes":
        main[0, :, : vocabulary // 2] = -math.inf
        main[-1, :, 1:] = -math.inf
        main[rows // 2, :, vocabulary // 3 :] = -math.inf
    if extra == "views":
        main = logits(rows, 3, vocabulary + 5, seed=1, dtype=dtype)[:, -1:, 2 : vocabulary + 2]
    return contrast(main, branch, beta=beta, **parts)


F32, F16, B16 = torch.float32, torch.float16, torch.bfloat16
MATRIX = [
    # vocabulary, rows, dtype, beta, temperature, top_k, top_p, extra
    (1, 3, F32, 0.1, 1.0, 1, 0.5, ""),
    (1, 1, F32, 0.0, 1.0, 0, 1.0, ""),
    (111, 0, B16, 0.1, 1.0, 5, 0.9, ""),
    pytest.param(111, 17, F32, 1e-9, 2.0, 0, 1.0, "terms", marks=pytest.mark.slow),
    (111, 5, B16, 0.0, 1.3, 7, 0.8, "ties"),
    (111, 3, F16, 1.0, 0.2, 2, 0.1, "ties"),
    (111, 3, F32, 0.1, 1.0, 0, 0.35, "equal"),
    (111, 3, F32, 0.0, 1.0, 9, 0.9, "equal"),
    (111, 5, F32, 0.1, 0.7, 3, 0.0, "rows"),
    pytest.param(4097, 17, F16, 0.1, 1.0, 0, 0.9, "ties", marks=pytest.mark.slow),
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
    combination = scene(vocabulary, rows, dtype, extra, beta)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": 2**40 + 7}
    settings["step"] = 2**31 + 5 if rows > 1 else 4
    got = select(combination, **settings)
    assert equal(got, define(combination, **settings))
    assert not got.broken.any()
    assert everywhere[0].startswith("select:")


@pytest.mark.parametrize("beta", [0.0, 1e-9, 0.1, 1.0])
@pytest.mark.parametrize("extra", ["", "ties", "holes", "terms"])
def test_greedy_is_the_argmax_of_the_combined_logits(everywhere, beta, extra):
    combination = scene(4097, 5, torch.float32, extra, beta)
    got = select(combination, greedy=True, temperature=0.1, top_k=3, top_p=0.1)
    combined = combine(combination)[:, 0]
    assert torch.equal(got.ids, combined.argmax(-1))
    if extra == "ties" and beta < 1.0:
        assert ((combined == combined.amax(-1, keepdim=True)).sum(-1) > 1).any()


def find_allowed(scores, temperature, top_k, top_p):
    """Return which tokens transformers leaves with a probability."""
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
    combination = contrast(main, branch, beta=beta)
    combined = combine(combination)
    allowed = find_allowed(combined[:, 0], temperature, top_k, top_p)
    scores = reference.remove_implausible(combined, combination)[:, 0]
    got = reference.warp_scores(scores, draw_of(temperature, top_k, top_p)).softmax(-1) > 0
    assert torch.equal(got.sum(-1), allowed.sum(-1))
    if tied:  # transformers sorts without order among equals
        assert torch.equal(*[combined[:, 0].masked_fill(~mask, -math.inf).sort(-1).values for mask in (got, allowed)])
    else:
        assert torch.equal(got, allowed)
    if 0 < top_p < 1:
        assert len(set(allowed.sum(-1).tolist())) > 1


def chances(scores, temperature, top_k, top_p):
    allowed = find_allowed(scores, temperature, top_k, top_p)
    return (scores.double() / temperature).masked_fill(~allowed, -math.inf).softmax(-1)


@pytest.mark.parametrize("keyed", ["rows", "steps", "seeds"])
@pytest.mark.parametrize(("beta", "temperature", "top_k", "top_p"), [(0.01, 1.0, 0, 1.0), (0.0, 1.6, 40, 0.95)])
def test_draws_are_distributed_as_the_softmax_of_what_is_left(keyed, beta, temperature, top_k, top_p):
    main, branch = logits(1, 80, seed=7, scale=1.5), logits(1, 80, seed=8, scale=0.5)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    each = 2000 if keyed == "rows" else 50
    drawn = torch.cat(
        [
            select(
                contrast(main.expand(each, -1), branch.expand(each, -1), beta=beta),
                rows=torch.arange(each) + (2**33 + each * turn if keyed == "rows" else 0),
                step=turn if keyed == "steps" else 3,
                seed=turn if keyed == "seeds" else 11,
                **settings,
            ).ids
            for turn in range(12000 // each)
        ]
    )
    counts = torch.bincount(drawn, minlength=80)
    combined = combine(contrast(main, branch, beta=beta))
    expected = chances(combined, temperature, top_k, top_p)[0]
    flatter = chances(combined, temperature * 1.2, top_k, top_p)[0]
    assert not counts[expected == 0].any()
    assert (expected > 0).sum() > 10
    assert fit(counts, expected) > 1e-3
    assert fit(counts, flatter) < 1e-6


def fit(counts, chance):
    """Return the p-value of chi-squared; tokens too rare to count share a bin."""
    expected = chance.double() * counts.sum()
    common = expected >= 5
    bins = [*counts[common].tolist(), counts[~common].sum().item()]
    expected_bins = [*expected[common].tolist(), expected[~common].sum().item()]
    keep = slice(None) if expected_bins[-1] >= 5 else slice(-1)
    scale = sum(bins[keep]) / sum(expected_bins[keep])
    return chisquare(bins[keep], torch.tensor(expected_bins[keep], dtype=torch.float64).mul(scale).tolist()).pvalue


@pytest.mark.parametrize("everywhere", ["torch", pytest.param("triton", marks=pytest.mark.slow)], indirect=True)
def test_a_draw_depends_on_seed_step_and_row_id_and_on_no_other_row(everywhere):
    main, branch = logits(6, 300), logits(6, 300, seed=1)
    combination = contrast(main, branch, beta=1e-4)
    settings = {"temperature": 9.0, "top_k": 100, "top_p": 0.99}
    first = select(combination, seed=5, step=2, **settings)
    assert equal(first, select(combination, seed=5, step=2, **settings))
    for change in (
        {"seed": 6, "step": 2},
        {"seed": 5, "step": 3},
        {"seed": 5, "step": 2, "rows": torch.arange(6) + 1},
        {"seed": 5, "step": 2, "rows": torch.arange(6) + 2**32},
    ):
        assert (select(combination, **change, **settings).ids != first.ids).sum() > 3
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    shuffled = select(contrast(main[order], branch[order], beta=1e-4), seed=5, step=2, rows=order, **settings)
    assert torch.equal(shuffled.ids, first.ids[order])
    alone = select(contrast(main[4:5], branch[4:5], beta=1e-4), seed=5, step=2, rows=torch.tensor([4]), **settings)
    assert alone.ids[0] == first.ids[4]


@pytest.mark.parametrize("vocabulary", [111, pytest.param(1271, marks=pytest.mark.slow)])
def test_neither_slices_nor_tiles_change_a_draw(on_triton, monkeypatch, vocabulary):
    main, branch = logits(2, vocabulary).round(), logits(2, vocabulary, seed=1).round()
    combination = contrast(main, branch, beta=1e-3)
    settings = {"temperature": 1.5, "top_k": 25, "top_p": 0.8, "seed": 9}
    expected = define(combination, **settings)
    for wide, tile, pivots in ((128, 64, 2), (1024, 128, 4), (8192, 1024, 16)):
        monkeypatch.setattr(launch, "WIDTH", wide)
        monkeypatch.setattr(fused, "TILE", tile)
        monkeypatch.setattr(fused, "PIVOTS", pivots)
        assert equal(select(combination, **settings), expected)


@pytest.mark.parametrize(
    ("beta", "top_k", "top_p", "tied"),
    [
        (0.0, 0, 1.0, True),
        (0.0, 200, 0.9, True),
        *(
            pytest.param(*settings, marks=pytest.mark.slow)
            for settings in [(1e-7, 30, 1.0, True), (1e-7, 0, 0.7, False), (0.0, 0, 0.7, True)]
        ),
    ],
)
def test_more_survivors_than_one_tile_holds_change_nothing(on_triton, monkeypatch, beta, top_k, top_p, tied):
    monkeypatch.setattr(fused, "TILE", 64)
    main, branch = logits(2, 700, scale=2.0), logits(2, 700, seed=1)
    if tied:
        main, branch = main.round(), branch.round()
    combination = contrast(main, branch, beta=beta)
    settings = {"top_k": top_k, "top_p": top_p, "temperature": 3.0, "seed": 3}
    survivors = combine(combination) > -DEMOTION / 2
    assert (survivors.sum(-1) > 4 * fused.TILE).all()
    assert equal(select(combination, **settings), define(combination, **settings))
    assert equal(select(combination, greedy=True, **settings), define(combination, greedy=True, **settings))


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("greedy", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_row_of_nan_or_without_tokens_is_broken_and_no_other(everywhere, beta, greedy):
    main, branch = logits(17, 300), logits(17, 300, seed=1)
    keep = torch.ones(17, 300, dtype=torch.bool)
    sound = select(contrast(main, branch, beta=beta, keep=keep), greedy=greedy, top_k=9, top_p=0.9)
    main[1, 200] = math.nan
    main[3] = -math.inf
    keep[5] = False
    main[7, 4], keep[7, 4] = math.nan, False
    branch[9, main[9].argmax()] = math.nan
    got = select(contrast(main, branch, beta=beta, keep=keep), greedy=greedy, top_k=9, top_p=0.9)
    hit = torch.tensor([1, 3, 5, 9])
    others = torch.tensor([row for row in range(17) if row not in (1, 3, 5, 7, 9)])
    assert (got.ids[hit] == -1).all()
    assert got.broken[hit].all()
    assert torch.equal(got.ids[others], sound.ids[others])
    assert got.broken.sum() == len(hit)
    assert got.ids[7] >= 0


def test_a_row_without_tokens_is_broken_where_few_survive_elsewhere(everywhere):
    main, keep = logits(20, 300, scale=9.0), torch.ones(20, 300, dtype=torch.bool)
    keep[5] = False
    got = select(Combination(main, beta=0.1, keep=keep), temperature=2.0)
    assert got.broken.nonzero().tolist() == [[5]]
    assert got.ids[5] == -1


@pytest.mark.parametrize("greedy", [False, True])
def test_an_implausible_token_is_drawn_only_where_no_plausible_one_stands(everywhere, greedy):
    main = torch.tensor([[0.0, -0.5, -20.0, -20.5, -21.0]]).expand(4, -1)
    far = torch.tensor([[3 * DEMOTION, 3 * DEMOTION, 0.0, 0.0, 0.0]]).expand(4, -1)
    combination = Combination(main, [far], [-1.0], beta=0.1)
    below = combine(combination)
    assert (below.argmax(-1) == 2).all()
    assert (select(combination, greedy=greedy).ids < 2).all()
    banned = torch.tensor([-math.inf, -math.inf, 0.0, 0.0, 0.0])
    biased = Combination(main, beta=0.1, bias=banned)
    got = select(biased, greedy=greedy, top_k=2)
    assert equal(got, define(biased, greedy=greedy, top_k=2))
    assert set(got.ids.tolist()) <= ({2} if greedy else {2, 3})


def test_an_infinite_logit_is_certain(everywhere):
    main = logits(3, 50)
    main[1, 17] = math.inf
    got = select(Combination(main, beta=0.1), temperature=3.0, top_k=5, top_p=0.9)
    assert got.ids[1] == 17
    assert not got.broken.any()


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 + 5, -(2**63) - 1, np.uint64(2**63)])
def test_every_whole_number_is_a_seed_of_which_64_bits_count(everywhere, seed):
    main = logits(1, 40).expand(3, -1)
    got = select(Combination(main), temperature=9.0, seed=seed, step=-1)
    assert equal(got, define(Combination(main), temperature=9.0, seed=int(seed) % 2**64, step=2**32 - 1))
    assert not equal(got, define(Combination(main), temperature=9.0, seed=int(seed) % 2**64 ^ 1, step=2**32 - 1))


@pytest.mark.parametrize("setting", [{"seed": 0.5}, {"seed": "a"}, {"top_k": 1.5}, {"step": 1.0}, {"seed": None}])
def test_what_is_no_whole_number_is_refused(setting):
    with pytest.raises(ValueError, match=f"select: {next(iter(setting))} must be a whole number"):
        select(Combination(logits(2, 10)), **setting)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_step_in_a_tensor_is_read_when_the_draw_runs(everywhere, dtype, shape):
    main = logits(1, 40).expand(4, -1)
    step = torch.full(shape, 3, dtype=dtype)
    drawn = []
    for number in (3, 4):  # as the replays of a graph do, which repeat all but the values
        step.fill_(number)
        drawn.append(select(Combination(main), temperature=9.0, seed=5, step=step))
        assert equal(drawn[-1], define(Combination(main), temperature=9.0, seed=5, step=number))
    assert not equal(*drawn)


@pytest.mark.parametrize(
    "step",
    [torch.ones(2).long(), torch.tensor(1.0), torch.ones((), dtype=torch.int64, device="meta"), torch.tensor([[]])],
)
def test_a_step_that_is_not_one_whole_number_is_refused(step):
    with pytest.raises(ValueError, match="select: step must be a number, or one of int32 or int64 on cpu"):
        select(Combination(logits(2, 10)), step=step)


FLAT = [(scale, temperature) for scale in (0.1, 3.0, 60.0) for temperature in (0.05, 0.7, 1.5)]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (40, 0.9), (0, 0.5)])
def test_leaving_out_what_cannot_be_drawn_changes_no_token(monkeypatch, top_k, top_p):
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    survivors, left_out = [], 0
    monkeypatch.setattr(
        select_eager, "_pack", lambda *a, pack=select_eager._pack: survivors.append(len(a[0])) or pack(*a)
    )
    monkeypatch.setattr(select_eager, "FEW", 2.0)
    for number, (scale, temperature) in enumerate(FLAT):
        main = logits(100, 300, seed=number, scale=scale)
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": number}
        survivors.clear()
        assert equal(select(Combination(main), **settings), define(Combination(main), **settings))
        left_out += main.numel() - survivors[0]
    assert left_out > 3 * main.numel()


SEEDS = 0, 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1
LANES = torch.tensor([0, 1, 7, 2**31, 2**40 + 3, -1])
WARPING = {"temperature": 0.6, "top_k": 12, "top_p": 0.9}


def compare_with_the_whole_vocabulary(monkeypatch, **settings):
    """Draws of six lanes from few tokens, from all of them, by the definition, and of a lane alone."""
    main = logits(len(LANES), 600, scale=6.0)
    runs = []
    for bound in (lambda *_: None, bounds.find_bound):
        for module in (fused, select_eager):
            monkeypatch.setattr(module, "find_bound", bound)
        runs.append(select(Combination(main), rows=LANES, **settings))
    assert equal(*runs)
    assert equal(runs[0], define(Combination(main), rows=LANES, **settings))
    alone = select(Combination(main[[4]]), rows=LANES[[4]], **settings)
    assert alone.ids == runs[0].ids[4]
    return runs[0].ids.tolist()


@pytest.mark.parametrize("warping", [{}, WARPING])
def test_a_search_draws_from_few_tokens_what_it_draws_from_all(monkeypatch, warping):
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    drawn = [
        compare_with_the_whole_vocabulary(monkeypatch, seed=seed, step=step, **warping)
        for seed in SEEDS
        for step in (0, 1, 2**32 - 1)
    ]
    assert len(set(map(tuple, drawn))) > 5


@pytest.mark.parametrize(("seed", "warping"), [(2**64 - 1, {}), (-(2**63), WARPING)])
def test_a_search_draws_so_in_triton_too(on_triton, monkeypatch, seed, warping):
    compare_with_the_whole_vocabulary(monkeypatch, seed=seed, step=2**32 - 1, **warping)


def test_a_draw_from_main_alone_lists_few_tokens(on_triton, monkeypatch):
    listed = []
    monkeypatch.setattr(
        fused, "_list_survivors", lambda *a, find=fused._list_survivors: listed.append(find(*a)) or listed[-1]
    )
    main = logits(3, 700, scale=9.0)
    main[1, 5] = 100.0
    for settings in ({}, {"temperature": 0.3, "top_k": 7, "top_p": 0.8}, {"greedy": True}):
        assert equal(select(Combination(main), **settings), define(Combination(main), **settings))
    counts = [survivors[0][:, 0].tolist() for survivors in listed]
    assert 1 == counts[0][1] < counts[0][0] < 700
    assert counts[1][0] < counts[0][0] / 2
    assert counts[2] == [1, 1, 1]


@pytest.mark.parametrize(
    "parts",
    [
        {"main_weight": 2.0},
        {"main_weight": torch.tensor(1.0)},
        {"bias": torch.zeros(300)},
        {"sources": [logits(2, 300)], "weights": [0.0]},
    ],
)
def test_where_something_is_added_to_main_every_token_may_be_drawn(parts):
    assert bounds.find_bound(Combination(logits(2, 300), **parts), draw_of()) is None


@pytest.mark.parametrize("best", [30.0, 1e8, 3e38])
@pytest.mark.parametrize("temperature", [1e-7, 0.7])
def test_rounding_of_large_logits_leaves_no_token_out(everywhere, best, temperature):
    offsets = torch.arange(40) / 40 * 60 * temperature
    main = (torch.tensor(best) - offsets).float().expand(4, -1)
    settings = {"temperature": temperature, "top_p": 0.999999, "seed": 3}
    assert equal(select(Combination(main), **settings), define(Combination(main), **settings))


def test_of_equal_scores_the_lowest_ids_stay(everywhere):
    main = torch.zeros(12, 8)
    main[:, :2] = -50
    drawn = select(Combination(main), top_p=0.5).ids
    assert set(drawn.tolist()) == {2, 3, 4}
    assert set(select(Combination(main), top_p=0.0).ids.tolist()) == {2}
    assert set(select(Combination(main), greedy=True).ids.tolist()) == {2}


def test_logits_may_come_without_positions_and_with_any_strides(everywhere):
    wide = logits(4, 3, 222)
    main, branch = wide[:, 1, ::2], wide[:, 2, 1::2]
    weight = torch.tensor([-1.0, 0.5, -2.0, 0.0])
    parts = {"beta": 0.01, "main_weight": 1.5}
    got = select(Combination(main, [branch], [weight], bias=wide[:, 0, ::2], **parts), top_p=0.9)
    with_positions = Combination(
        main[:, None].clone(), [branch[:, None].clone()], [weight[:, None]], bias=wide[:, :1, ::2], **parts
    )
    same = select(with_positions, top_p=0.9)
    assert equal(got, same)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": math.nan}, "temperature must be positive"),
        ({"top_k": -1}, "top_k must be at least 1"),
        ({"top_p": 1.5}, "top_p must lie between 0 and 1"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        select(Combination(logits(2, 10)), **settings)


def test_several_positions_are_refused():
    with pytest.raises(ValueError, match="one position"):
        select(Combination(logits(2, 3, 10)))


ANSWERS = [  # key, counter and first word: known answers published with Random123
    (0x0, (0x0, 0x0, 0x0, 0x0), 0x6627E8D5),
    (2**64 - 1, (2**32 - 1,) * 4, 0x408F276D),
    (0x299F31D0A4093822, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0xD16CFE09),
]


@pytest.mark.parametrize(("seed", "counter", "word"), ANSWERS)
def test_philox_gives_the_published_numbers(seed, counter, word):
    assert noise.philox(seed, *[torch.tensor([number]) for number in counter]).tolist() == [word]


@triton.jit
def _draw_noise(words, uniform, ours, seed, step, row_id):
    token = tl.arange(0, 4096)
    word, _, _, _ = tl.philox(seed, token, token * 0 + step, token * 0, token * 0)
    tl.store(words + token, word.to(tl.int64))
    tl.store(uniform + token, tl.rand(seed, token))
    tl.store(ours + token, fused._draw_gumbel(seed, step, row_id, token))


def test_noise_is_the_same_in_triton():
    words, uniform, ours = torch.empty(4096, dtype=torch.int64), torch.empty(4096), torch.empty(4096)
    token, zero = torch.arange(4096), torch.zeros(4096, dtype=torch.int64)
    for seed, step, row_id in ((0, 0, 5), (2**63 - 1, 77, 2**40 + 3), (-5, 2**31 - 1, 0)):
        _draw_noise[1,](words, uniform, ours, seed, step, row_id)
        assert torch.equal(words, noise.philox(seed, token, zero + step, zero, zero))
        assert torch.equal(uniform, noise.convert_to_uniform(noise.philox(seed, token, zero, zero, zero)))
        expected = noise.gumbel(seed, step, torch.tensor([row_id]), token[None])[0]
        assert torch.allclose(ours, expected, rtol=1e-6, atol=1e-6)


@triton.jit
def _make_noise(words, ours, count: tl.constexpr):
    at = tl.arange(0, count)
    tl.store(ours + at, fused._convert_to_gumbel(tl.load(words + at).to(tl.uint32)))


def test_noise_is_finite_and_exact_at_both_ends():
    words = torch.tensor([0, 1, 2, 100, 2**31 - 1, 2**31, 2**31 + 100, 2**32 - 1])
    uniform = noise.convert_to_uniform(words).double().clamp(2**-31, 1 - 2**-24)
    expected = (-(-torch.log1p(-uniform)).log()).float()
    ours = torch.empty(8)
    _make_noise[1,](words, ours, 8)
    assert expected.max() > 21
    assert torch.allclose(noise.convert_to_gumbel(words), expected, rtol=1e-6)
    assert torch.allclose(ours, expected, rtol=1e-6)
