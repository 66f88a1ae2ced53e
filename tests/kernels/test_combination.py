"""The value that kernels take: what it refuses, and the former calls that still make one."""

import dataclasses
import math
import warnings

import lvlm_guard_kernels
import pytest
import torch
from lvlm_guard_kernels import Combination, combine, jensen_shannon, kl, select

MAIN = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0)) * 3
BRANCH = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture(params=["torch", "triton"])
def everywhere(request, monkeypatch):
    if request.param == "triton":
        request.getfixturevalue("on_triton")
    else:
        monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"main": MAIN[0, 0]}, r"\[rows, positions, vocab\] or \[rows, vocab\], got \(9,\)"),
        ({"main": MAIN[None]}, r"got \(1, 2, 3, 9\)"),
        ({"main": MAIN.long()}, "float dtype, got torch.int64"),
        ({"sources": [BRANCH]}, "1 sources have 0 weights"),
        ({"weights": [1.0]}, "0 sources have 1 weights"),
        ({"sources": [BRANCH[..., :8]], "weights": [1.0]}, r"\(2, 3, 8\) does not fit main of shape \(2, 3, 9\)"),
        ({"sources": [BRANCH[:1]], "weights": [1.0]}, r"\(1, 3, 9\) does not fit"),
        ({"sources": [BRANCH.long()], "weights": [1.0]}, "float dtype"),
        ({"sources": [BRANCH], "weights": [torch.ones(3, 2)]}, r"a weight of shape \(3, 2\).* \(2, 3\)"),
        ({"main": MAIN[:, :2], "main_weight": torch.ones(2)}, r"may be of rows or of positions.*Write \[rows, 1\]"),
        ({"main_weight": torch.ones(2, 3, 1)}, r"a weight of shape \(2, 3, 1\)"),
        ({"bias": torch.ones(8)}, r"bias of shape \(8,\) does not broadcast to \(2, 3, 9\)"),
        ({"bias": torch.ones(1, 2, 3, 9)}, "bias of shape"),
        ({"keep": torch.ones(8, dtype=torch.bool)}, "keep of shape"),
        ({"keep": torch.ones(9)}, "bool tensor, got torch.float32"),
        ({"main": MAIN.to_sparse()}, "must be dense"),
        ({"sources": [BRANCH.to("meta")], "weights": [1.0]}, "logits lie on meta and on cpu"),
        ({"sources": [BRANCH.to_sparse()], "weights": [1.0]}, "must be dense"),
        ({"main_weight": torch.ones(2, 3, device="meta")}, "a weight lies on meta, and main on cpu"),
        ({"main_weight": torch.ones(2, 3) * 1j}, "a weight must be dense and real"),
        ({"bias": torch.ones(9, device="meta")}, "bias lies on meta"),
        ({"bias": torch.ones(9).to_sparse()}, "bias must be dense"),
        ({"keep": torch.ones(9, dtype=torch.bool, device="meta")}, "keep lies on meta"),
        ({"beta": -0.1}, r"beta must lie between 0 and 1, got -0\.1"),
        ({"beta": 1.1}, "beta must lie"),
        ({"beta": float("nan")}, "beta must lie"),
    ],
)
def test_what_does_not_fit_is_refused(parts, message):
    with pytest.raises(ValueError, match=f"Combination: .*{message}"):
        Combination(**{"main": MAIN, **parts})


def test_what_fits_is_accepted_and_cannot_change():
    sources = [BRANCH]
    keep = torch.ones(2, 1, 9, dtype=torch.bool)
    combination = Combination(MAIN, sources, [torch.ones(2, 1)], torch.tensor(1.0), 1.0, torch.ones(9), keep)
    sources.append(BRANCH)
    assert len(combination.sources) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        combination.beta = 0.5


def test_main_alone_is_neutral(everywhere):
    assert torch.equal(combine(Combination(MAIN)), MAIN)


def every_part(**parts):
    """All that can be combined at once."""
    return {
        "main": MAIN, "sources": [BRANCH], "weights": [-1.0], "main_weight": 2.0, "beta": 0.1,
        "bias": torch.arange(9) / 7, "keep": torch.arange(9) != 3, **parts,
    }  # fmt: skip


@pytest.mark.parametrize("weight", [torch.tensor(-0.5), torch.tensor([[-0.5], [0.25]]), torch.tensor([-0.5, 1.0, 2.0])])
@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_a_weight_broadcasts_over_rows_and_positions(everywhere, weight, beta):
    spread = weight.expand(2, 3).clone()
    got = combine(Combination(**every_part(weights=[weight], main_weight=weight, beta=beta)))
    assert torch.equal(got, combine(Combination(**every_part(weights=[spread], main_weight=spread, beta=beta))))
    assert not torch.equal(got, combine(Combination(**every_part(beta=beta))))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), torch.float64),
        ((1,), torch.float32),
        ((2,), torch.bfloat16),
        ((2, 1), torch.int64),
        ((1, 1), torch.float32),
    ],
)
@pytest.mark.parametrize("form", ["positions", "one position", "no position"])
def test_a_weight_may_have_any_shape_of_rows_on_every_path(everywhere, shape, dtype, form):
    def cut(values):
        return {"positions": values, "one position": values[:, :1], "no position": values[:, 0]}[form]

    weight = torch.arange(1, 1 + math.prod(shape)).reshape(shape).to(dtype)
    numbers = [float(weight.reshape(-1)[row % weight.numel()]) for row in range(2)]
    combination = Combination(cut(MAIN), [cut(BRANCH)], [weight], weight, 0.3)
    got = combine(combination)
    for row, number in enumerate(numbers):
        assert torch.equal(got[row], combine(Combination(cut(MAIN), [cut(BRANCH)], [number], number, 0.3))[row])
    if form != "positions":
        assert torch.equal(select(combination, greedy=True).ids, got.reshape(2, -1).argmax(-1))
    assert not torch.equal(got, combine(Combination(cut(MAIN), [cut(BRANCH)], [0.5], 0.5, 0.3)))


def test_no_result_has_a_gradient_whatever_asks_for_one(everywhere):
    main, branch = MAIN[:, :1].clone().requires_grad_(), BRANCH[:, :1].clone().requires_grad_()
    weight = torch.ones(2, 1, requires_grad=True)
    combination = Combination(main, [branch], [weight], beta=0.5)
    measured = lvlm_guard_kernels.statistics(main)
    results = [
        combine(combination), measured.entropy, measured.best, lvlm_guard_kernels.entropy(main), kl(main, branch),
        jensen_shannon(main, branch), lvlm_guard_kernels.log_sum_exp(main),
    ]  # fmt: skip
    assert not any(result.requires_grad for result in results)
    select(combination)
    assert torch.is_grad_enabled()


def test_few_survivors_take_the_weight_of_their_row(everywhere):
    main = torch.randn(2, 3, 640, generator=torch.Generator().manual_seed(2)) * 9
    weight, branch = torch.tensor([[-0.5], [0.25]]), main.flip(-1)
    got = combine(Combination(main, [branch], [weight], beta=0.5))
    expected = combine(Combination(main, [branch], [weight.expand(2, 3).clone()], beta=0.5))
    assert torch.equal(got, expected)
    drawn = select(Combination(main[:, :1], [branch[:, :1]], [torch.tensor(-0.5)], torch.tensor(2.0), 0.5), greedy=True)
    assert torch.equal(drawn.ids, combine(Combination(main[:, 0], [branch[:, 0]], [-0.5], 2.0, 0.5)).argmax(-1))


@pytest.mark.parametrize("weight", [-1.0, torch.tensor([-0.5, 0.25])])
def test_positions_may_be_left_out(everywhere, weight):
    bias = torch.arange(18).view(2, 9) / 7
    parts = every_part(main=MAIN[:, 0], sources=[BRANCH[:, 0]], weights=[weight], bias=bias)
    combination = Combination(**parts)
    got = combine(combination)
    assert got.shape == (2, 9)
    assert torch.equal(got, combine(combination.with_positions())[:, 0])
    assert combination.with_positions().with_positions().main.shape == (2, 1, 9)


def test_nothing_warns_of_a_combination(everywhere):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Conversion of an array with ndim > 0")  # of Triton 3.2's interpreter
        combine(Combination(MAIN))
        combine(combination=Combination(MAIN))
        select(Combination(MAIN[:, 0]), greedy=True)


def test_combine_still_takes_parts_with_a_warning():
    parts = every_part()
    expected = combine(Combination(**parts))
    with pytest.warns(DeprecationWarning, match=r"combine\(main, .*Call combine\(Combination") as caught:
        got = combine(parts.pop("main"), parts.pop("sources"), parts.pop("weights"), **parts)
    assert torch.equal(got, expected)
    assert caught[0].filename == __file__
    with pytest.deprecated_call():
        assert torch.equal(combine(**every_part()), expected)
    with pytest.deprecated_call(), pytest.raises(TypeError, match="temperature"):
        combine(MAIN, temperature=1.0)


def test_select_still_takes_parts_with_or_without_positions_with_a_warning():
    weight, bias = torch.tensor([-0.5, 0.25]), torch.arange(18).view(2, 9) / 7
    parts = every_part(main=MAIN[:, :1], sources=[BRANCH[:, :1]], weights=[weight[:, None]], bias=bias[:, None])
    settings = {"temperature": 1.5, "top_k": 7, "seed": 4, "rows": torch.tensor([5, 2**33])}
    expected = select(Combination(**parts), **settings)
    for variant in (parts, parts | {"bias": bias, "weights": [weight], "sources": [BRANCH[:, 0]]}):
        former = dict(variant)
        with pytest.warns(DeprecationWarning, match=r"select\(main, .*Call select\(Combination") as caught:
            got = select(former.pop("main"), former.pop("sources"), former.pop("weights"), **former, **settings)
        assert torch.equal(got.ids, expected.ids)
        assert caught[0].filename == __file__
    with pytest.deprecated_call(), pytest.raises(ValueError, match="one position"):
        select(MAIN)


def test_divergences_still_take_their_former_keywords_with_a_warning():
    for function in (kl, jensen_shannon):
        with pytest.warns(DeprecationWarning, match="Use p_logits= instead"):
            got = function(one=MAIN, other=BRANCH)
        assert torch.equal(got, function(MAIN, BRANCH))
        assert torch.equal(got, function(p_logits=MAIN, q_logits=BRANCH))


@pytest.mark.parametrize(("old", "new"), [("Selected", "Selection"), ("paths", "record_paths")])
def test_renamed_names_are_still_there_with_a_warning(old, new):
    with pytest.warns(DeprecationWarning, match=f"lvlm_guard_kernels.{old} is deprecated. Use {new}"):
        assert getattr(lvlm_guard_kernels, old) is getattr(lvlm_guard_kernels, new)
    assert new in lvlm_guard_kernels.__all__
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = lvlm_guard_kernels.nothing
