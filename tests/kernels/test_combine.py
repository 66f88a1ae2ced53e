"""`combine` in torch and in Triton against its reference, over shapes, strides, dtypes and values that break kernels."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from lvlm_guard_kernels import DEMOTION, Combination, combine, launch
from lvlm_guard_kernels.combine import eager, fused, reference
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

FACTORS = {
    "vocabulary": (1, 111, 1000, 1271, 4097, 32000, 32001),
    "rows": (0, 1, 3, 17),
    "positions": (1, 3),
    "layout": ("contiguous", "every other row", "last positions", "odd stride", "tokens apart"),
    "main": (torch.float32, torch.float16, torch.bfloat16),
    "source": (torch.float32, torch.float16, torch.bfloat16),
    "sources": (0, 1, 4, 5),
    "alpha": (0.0, 0.5, 1.0, 3.0),
    "per_row": (False, True),
    "beta": (0.0, 1e-9, 0.1, 1.0),
    "bias": (None, "shared", "per row"),
    "keep": (None, "shared", "per row"),
    "holes": ("none", "first tile", "last tile", "all but one", "all", "scattered", "nan", "inf"),
    "whole": (False, True),
}
MOST = 17 * 32001


def cover(factors, seed=0):
    """A few cases in which every pair of values of two factors occurs; each is the best of some random small ones."""
    draw, names = random.Random(seed), list(factors)
    left = {pair for first, second in itertools.combinations(names, 2) for pair in itertools.product(
        [(first, value) for value in factors[first]], [(second, value) for value in factors[second]]
    )}  # fmt: skip
    while left:
        forced = dict(min(left, key=str))
        drawn = [{name: draw.choice(factors[name]) for name in names} | forced for _ in range(60)]
        small = [case for case in drawn if case["vocabulary"] * case["rows"] * case["positions"] <= MOST]
        best = max(small, key=lambda case: len(left & set(itertools.combinations(case.items(), 2))))
        left -= set(itertools.combinations([(name, best[name]) for name in names], 2))
        yield {name: best[name] for name in names}


CASES = list(cover(FACTORS))


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def laid_out(values, layout):
    """The same values in memory that is laid out differently."""
    count, positions, vocabulary = values.shape
    if layout == "every other row":
        room = values.new_full((2 * count, positions, vocabulary), math.nan)
        view = room[::2]
    elif layout == "last positions":
        view = values.new_full((count, positions + 4, vocabulary), math.nan)[:, -positions:]
    elif layout == "odd stride":
        view = values.new_full((count, positions, vocabulary + 3), math.nan)[..., 1 : vocabulary + 1]
    elif layout == "tokens apart":
        view = values.new_full((count, vocabulary, positions), math.nan).transpose(1, 2)
    else:
        return values
    return view.copy_(values)


def pierced(main, holes):
    """Logits with some of them -inf, NaN or +inf."""
    vocabulary = main.shape[-1]
    tile, token = max(vocabulary // 3, 1), torch.arange(vocabulary)
    everywhere = torch.ones(vocabulary, dtype=torch.bool)
    where = {
        "first tile": token < tile,
        "last tile": token >= vocabulary - tile,
        "all but one": token != vocabulary // 2,
        "all": everywhere,
        "scattered": token % 3 == 1,
    }.get(holes, ~everywhere)
    main = main.masked_fill(where, -math.inf)
    if main.numel() and holes in ("nan", "inf"):
        main[-1, 0, vocabulary // 2] = float(holes)
    return main


def build(case):
    """What a case combines."""
    shape = (case["rows"], case["positions"], case["vocabulary"])
    main = laid_out(pierced(draw(*shape, dtype=case["main"]), case["holes"]), case["layout"])
    numbers = range(1, case["sources"] + 1)
    sources = [laid_out(draw(*shape, seed=number, dtype=case["source"]), case["layout"]) for number in numbers]
    weights = [-case["alpha"] / number for number in numbers]
    main_weight = 1.0 + case["alpha"]
    if case["per_row"]:
        weights = [weight * draw(*shape[:2], seed=10 + index).abs() for index, weight in enumerate(weights)]
        main_weight = main_weight + draw(*shape[:2], seed=20).abs()
    bias = draw(*extent(case, "bias"), seed=30, dtype=case["source"]) if case["bias"] else None
    keep = draw(*extent(case, "keep"), seed=40) > -1.0 if case["keep"] else None
    return Combination(main, sources, weights, main_weight, case["beta"], bias, keep)


def extent(case, name):
    """Shape of a bias or restriction."""
    return (case["vocabulary"],) if case[name] == "shared" else (case["rows"], 1, case["vocabulary"])


def assert_equal(got, expected):
    """NaN and infinities in the same places, everything else within fp32 rounding of a short sum."""
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5, equal_nan=True)


@pytest.fixture(params=["eager", "triton"])
def run(request, monkeypatch):
    """`combine` in each implementation, with a check that it ran."""
    if request.param == "triton":
        request.getfixturevalue("on_triton")
    else:
        monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    return combine


def test_the_matrix_holds_every_pair_of_values_and_moves_logits_in_most_cases():
    pairs = {pair for case in CASES for pair in itertools.combinations(case.items(), 2)}
    lengths = [len(values) for values in FACTORS.values()]
    assert len(pairs) == sum(first * second for first, second in itertools.combinations(lengths, 2))
    combinations = [build(case) for case in CASES]
    effects = [(reference.combine(value) - value.main.float()).nan_to_num(0, 0, 0).abs() for value in combinations]
    moved = [bool(((effect > 0.1) & (effect < DEMOTION / 2)).any()) for effect in effects]
    assert sum(moved) > len(CASES) / 2


MANY_ROWS = [
    pytest.param(case, marks=pytest.mark.slow) if case["rows"] == 17 and case["whole"] else case for case in CASES
]
"""Every whole row is a program, and the interpreter takes one after the other."""


@pytest.mark.parametrize("case", MANY_ROWS, ids=range(len(CASES)))
def test_every_implementation_equals_the_reference(run, case, monkeypatch):
    if case["whole"]:
        monkeypatch.setattr(launch, "count_processors", lambda device: 1)
    combination = build(case)
    assert_equal(run(combination), reference.combine(combination))


def test_a_program_takes_a_whole_row_where_rows_are_many(on_triton, monkeypatch):
    combination = Combination(draw(4, 1, 9001), [draw(4, 1, 9001, seed=1)], [-1.0], main_weight=2.0, beta=0.1)
    assert len(list_launches(combination, monkeypatch)) == 2
    monkeypatch.setattr(launch, "count_processors", lambda device: 2)
    assert len(list_launches(combination, monkeypatch)) == 1
    assert_equal(combine(combination), reference.combine(combination))


def list_launches(combination, monkeypatch):
    """Return the names of the kernels that `combine` launches."""
    names, call = [], interpreter.GridExecutor.__call__
    with monkeypatch.context() as patch:
        patch.setattr(
            interpreter.GridExecutor,
            "__call__",
            lambda self, *args, **more: (names.append(self.fn.__name__), call(self, *args, **more))[1],
        )
        combine(combination)
    return names


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_a_token_exactly_at_the_threshold_survives_and_the_next_number_below_does_not(run, beta):
    best = torch.tensor(3.7)
    edge = best + math.log(beta)
    below = torch.nextafter(edge, torch.tensor(-math.inf))
    main = torch.full((1, 1, 5000), -50.0)
    main[0, 0, [7, 4100, 4999]] = torch.stack([best, edge, below])
    got = run(Combination(main, [torch.ones_like(main)], [-1.0], beta=beta))[0, 0]
    assert got[[7, 4100]].tolist() == [best - 1, edge - 1]
    assert got[4999] == below - DEMOTION


def test_equal_logits_all_survive_the_strictest_plausibility(run):
    main = torch.full((2, 1, 4099), 1.25)
    branch = draw(2, 1, 4099)
    got = run(Combination(main, [branch], [-1.0], beta=1.0))
    assert_equal(got, main - branch)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_source_moves_nothing_where_main_does_not_survive(run, poison):
    main, branch = draw(3, 2, 4500), draw(3, 2, 4500, seed=1)
    survives = main >= main.amax(-1, keepdim=True) + math.log(0.1)
    assert 0 < survives.sum() < survives.numel() / 100
    clean = Combination(main, [branch], [-1.0], main_weight=2.0, beta=0.1)
    spoilt = replace(clean, sources=[branch.masked_fill(~survives, poison)])
    got = run(spoilt)
    assert got.isfinite().all()
    assert torch.equal(got, run(clean))


def test_triton_loads_a_source_at_survivors_only(on_triton, monkeypatch):
    main, branch = draw(3, 2, 4500), draw(3, 2, 4500, seed=1)
    first, size = branch.data_ptr(), branch.element_size()
    read, load = set(), interpreter.InterpreterBuilder.create_masked_load

    def record_load(self, pointers, mask, *more):
        read.update((pointers.data[mask.data].astype("int64") - first).tolist())
        return load(self, pointers, mask, *more)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", record_load)
    combine(Combination(main, [branch], [-1.0], main_weight=2.0, beta=0.1))
    survives = main >= main.amax(-1, keepdim=True) + math.log(0.1)
    expected = (survives.flatten().nonzero()[:, 0] * size).tolist()
    assert {place for place in read if 0 <= place < branch.nbytes} == set(expected)


class Reading(TorchDispatchMode):
    """Names and result sizes of the operations that take one tensor."""

    def __init__(self, watched):
        super().__init__()
        self.watched, self.seen = watched, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(arg is self.watched for arg in args):
            self.seen.append((function.overloadpacket.__name__, result.numel()))
        return result


def test_torch_indexes_a_source_at_survivors_only():
    main, branch = draw(3, 2, 4500), draw(3, 2, 4500, seed=1)
    survives = main >= main.amax(-1, keepdim=True) + math.log(0.1)
    with Reading(branch) as reading:
        eager.combine(Combination(main, [branch], [-1.0], main_weight=2.0, beta=0.1))
    ((name, size),) = reading.seen
    assert name in ("index", "index_select", "take")
    assert size == survives.sum()


def test_nan_of_main_spreads_over_its_row_under_plausibility_and_stays_alone_without(run):
    main, branch = draw(3, 1, 4500), draw(3, 1, 4500, seed=1)
    main[1, 0, 4400] = math.nan
    spread = run(Combination(main, [branch], [-1.0], beta=0.1)).isnan()
    assert spread.all(-1).flatten().tolist() == [False, True, False]
    assert spread.sum() == 4500
    alone = run(Combination(main, [branch], [-1.0])).isnan()
    assert alone.nonzero().tolist() == [[1, 0, 4400]]


def test_nan_at_a_removed_token_is_removed(run):
    main, keep = draw(2, 1, 4500), torch.ones(4500, dtype=torch.bool)
    main[0, 0, 4400], keep[4400] = math.nan, False
    got = run(Combination(main, [draw(2, 1, 4500, seed=1)], [-1.0], beta=0.1, keep=keep))
    assert not got.isnan().any()
    assert (got[..., 4400] == -math.inf).all()


@pytest.mark.parametrize("main_weight", [-1.0, 0.0])
def test_a_row_of_removed_tokens_among_many_stays_removed_whatever_its_weight(run, main_weight):
    main = draw(33, 1, 300)
    main[5] = -math.inf
    got = run(Combination(main, [draw(33, 1, 300, seed=1)], [1.0], main_weight=main_weight, beta=0.5))
    assert (got[5] == -math.inf).all()
    assert got[:5].isfinite().all()


def test_half_precision_logits_that_overflow_when_weighted_do_not(run):
    main = torch.full((1, 1, 300), 40000.0, dtype=torch.float16)
    got = run(Combination(main, [torch.full_like(main, 30000.0)], [-1.0], main_weight=2.0, beta=0.1))
    assert (got == 50000.0).all()


def test_more_sources_than_slots_are_all_added(run):
    main, sources = draw(2, 2, 1100), [draw(2, 2, 1100, seed=number) for number in range(1, 8)]
    weights = [0.5**power if power % 2 else torch.full((2, 2), -(0.5**power)) for power in range(7)]
    assert len(sources) > fused.SLOTS + 1
    expected = main.double()
    for source, weight in zip(sources, weights, strict=True):
        expected = expected + source.double() * (weight if isinstance(weight, float) else weight[..., None])
    got = run(Combination(main, sources, weights))
    torch.testing.assert_close(got, expected.float(), rtol=1e-6, atol=1e-5)


def test_inputs_are_left_as_they_were(run):
    main, branch, bias = draw(2, 1, 1100), draw(2, 1, 1100, seed=1), draw(1100, seed=2)
    before = main.clone(), branch.clone(), bias.clone()
    run(Combination(main, [branch], [-1.0], main_weight=2.0, beta=0.1, bias=bias, keep=bias > -3))
    assert all(torch.equal(*pair) for pair in zip(before, (main, branch, bias), strict=True))
