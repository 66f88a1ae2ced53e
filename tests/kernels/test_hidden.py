"""Edits of hidden states in Triton against their definition, and what they refuse."""

import math

import pytest
import torch
from counted_operations import CountOperations
from lvlm_guard_kernels import KernelsUnavailable, project, shift, turn
from lvlm_guard_kernels.hidden import eager, fused, reference, running

FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


def draw(*shape, seed=0, dtype=FLOAT, scale=3.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(scale).to(dtype)


def unit(*shape, seed=1):
    return torch.nn.functional.normalize(draw(*shape, seed=seed), dim=-1)


CASES = [
    # states, direction, dtype, layout
    ((3, 1, 64), (3, 1, 64), FLOAT, "plain"),
    ((2, 5, 48), (48,), BRAIN, "plain"),
    ((2, 5, 100), (2, 1, 100), HALF, "last positions"),
    ((2, 3, 33), (3, 33), FLOAT, "apart"),
    ((7, 40), (1, 40), FLOAT, "plain"),
    ((40,), (40,), FLOAT, "plain"),
    ((2, 2, 3, 16), (3, 16), BRAIN, "plain"),
    ((0, 4, 8), (8,), FLOAT, "plain"),
    ((1, 2, 1), (1,), FLOAT, "plain"),
]


def laid(values, layout):
    """The same states as a view into a larger tensor whose other entries are NaN."""
    if layout == "apart":
        return values.mT.contiguous().mT
    if layout == "last positions":
        room = values.new_full((values.shape[0], values.shape[1] + 3, values.shape[2] + 4), math.nan)
        view = room[:, 3:, : values.shape[2]]
        return view.copy_(values)
    return values


def assert_same(got, expected, hidden):
    assert got.dtype == hidden.dtype
    assert got.shape == hidden.shape
    coarse = {FLOAT: 1e-5, HALF: 2e-3, BRAIN: 2e-2}[
        hidden.dtype
    ]  # a unit in the last place; the interpreter cuts bf16 off
    torch.testing.assert_close(got.float(), expected, rtol=coarse, atol=1e-5)


@pytest.mark.parametrize(("shape", "direction", "dtype", "layout"), CASES)
def test_states_are_edited_as_defined(on_triton, shape, direction, dtype, layout):
    hidden, vectors = laid(draw(*shape, dtype=dtype), layout), unit(*direction)
    before = hidden.clone()
    for opposed in (False, True):
        expected = reference.turn(hidden, vectors, 0.7, opposed=opposed)
        assert_same(turn(hidden, vectors, 0.7, opposed=opposed), expected, hidden)
    assert_same(shift(hidden, vectors, -1.5), reference.shift(hidden, vectors, -1.5), hidden)
    stacked = unit(3, shape[-1], seed=2)
    assert_same(project(hidden, stacked, 0.8), reference.project(hidden, stacked, 0.8), hidden)
    assert torch.equal(hidden, before)
    assert set(on_triton) == {"turn:triton", "shift:triton", "project:triton"}


@pytest.mark.parametrize(
    ("shape", "direction", "dtype", "layout"), [*CASES, ((2, 5, 48), (48,), torch.float64, "apart")]
)
def test_torch_runs_the_definition(shape, direction, dtype, layout):
    hidden, vectors = laid(draw(*shape, dtype=dtype), layout), unit(*direction)
    for operand in (vectors, vectors.bfloat16(), vectors.double()):
        got, expected = eager.shift(hidden, operand, -1.5), reference.shift(hidden, operand, -1.5)
        assert got.dtype == FLOAT
        assert torch.equal(got, expected)
    stacked = unit(3, shape[-1], seed=2)
    for directions in (stacked, stacked.double()) + ((stacked.expand(shape[0], -1, -1),) if len(shape) == 3 else ()):
        got, expected = eager.project(hidden, directions, 0.8), reference.project(hidden, directions, 0.8)
        assert got.dtype == FLOAT
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("shape", [(2, 3, 64), (3, 64)])
def test_autocast_changes_no_edit(shape):
    hidden, direction = draw(*shape), unit(64)
    for edit in (
        lambda: turn(hidden, direction, 0.5, opposed=True),
        lambda: project(hidden, unit(3, 64)),
        lambda: shift(hidden, direction),
    ):
        expected = edit()
        with torch.autocast("cpu", torch.bfloat16):
            assert (hidden @ hidden.mT).dtype == BRAIN
            assert torch.equal(edit(), expected)


def test_rows_may_have_directions_of_their_own(on_triton):
    hidden, directions = draw(3, 4, 24), unit(3, 2, 24)
    got = project(hidden, directions)
    assert_same(got, reference.project(hidden, directions, 1.0), hidden)
    assert (got - project(hidden, directions[:1])).abs().amax() > 0.1
    assert_same(project(hidden, unit(0, 24)), hidden, hidden)


def by_hand(hidden, direction, strength, opposed):
    """The formula of a turn in float64, written as the paper has it."""
    x, u = hidden.double(), direction.double()
    away = (-(x * u).sum(-1, keepdim=True) / x.norm(dim=-1, keepdim=True)).clamp_min(0) if opposed else 0.0
    weight = strength * (1 + away)
    aim = torch.nn.functional.normalize(x, dim=-1) + weight * u
    return x.norm(dim=-1, keepdim=True) * torch.nn.functional.normalize(aim, dim=-1)


@pytest.mark.parametrize("opposed", [False, True])
def test_the_definition_of_a_turn_is_the_formula(opposed):
    hidden, direction = draw(40, 1, 16), unit(40, 1, 16)
    got = reference.turn(hidden, direction, 0.5, opposed=opposed)
    torch.testing.assert_close(got.double(), by_hand(hidden, direction, 0.5, opposed), rtol=1e-5, atol=1e-5)
    assert (got - by_hand(hidden, direction, 0.5, not opposed)).abs().amax() > 0.1
    assert (got - hidden).abs().amax() > 0.1


def test_what_a_projection_removes_is_gone_and_the_rest_stays():
    hidden = draw(4, 2, 16)
    directions = torch.linalg.qr(draw(16, 3, seed=5)).Q.T.contiguous()
    got = reference.project(hidden, directions, 1.0)
    assert (got @ directions.T).abs().amax() < 1e-5
    torch.testing.assert_close(got, hidden - (hidden @ directions.T) @ directions)
    assert (got - hidden).abs().amax() > 0.1


def test_states_of_zeros_and_directions_of_zeros_stay(on_triton):
    hidden = draw(2, 3, 16)
    hidden[0] = 0
    direction = unit(16)
    assert torch.equal(turn(hidden, direction, 2.0)[0], torch.zeros(3, 16))
    torch.testing.assert_close(turn(hidden, torch.zeros(16), 2.0, opposed=True), hidden)


def test_nan_and_infinity_are_never_hidden(on_triton):
    hidden, direction = draw(3, 1, 16), unit(16)
    hidden[0, 0, 3], hidden[1, 0, 4] = math.nan, math.inf
    for got, expected in (
        (turn(hidden, direction, 0.5), reference.turn(hidden, direction, 0.5, opposed=False)),
        (project(hidden, direction[None]), reference.project(hidden, direction[None], 1.0)),
        (shift(hidden, direction), reference.shift(hidden, direction, 1.0)),
    ):
        assert got[0].isnan().any()
        torch.testing.assert_close(got, expected, equal_nan=True)


def test_an_edit_is_one_launch_and_nothing_else(monkeypatch):
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "triton")
    launched = []
    monkeypatch.setattr(fused.launch, "run", lambda kernel, *_, **__: launched.append(kernel))
    hidden, direction = draw(2, 3, 16, dtype=BRAIN), unit(2, 1, 16)
    for edit in (
        lambda: turn(hidden, direction, 0.5, opposed=True),
        lambda: project(hidden, direction),
        lambda: shift(hidden, direction),
    ):
        launched.clear()
        with CountOperations() as operations:
            edit()
        assert len(launched) == 1
        assert operations.names == []


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_no_result_has_a_gradient(request, monkeypatch, path):
    if path == "triton":
        request.getfixturevalue("on_triton")
    else:
        monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    hidden, direction = draw(2, 3, 16).requires_grad_(), unit(16).requires_grad_()
    for got in (turn(hidden, direction, 0.5), project(hidden, direction[None]), shift(hidden, direction)):
        assert not got.requires_grad


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda x: turn(x, torch.ones(15), 1.0),
            r"turn: \(15,\) does not broadcast to hidden states of shape \(2, 3, 16\)",
        ),
        (lambda x: turn(x, torch.ones(1), 1.0), "does not broadcast"),
        (lambda x: turn(x, torch.ones(3, 3, 16), 1.0), "does not broadcast"),
        (lambda x: shift(x, torch.ones(()), 1.0), "does not broadcast"),
        (lambda x: shift(x, torch.ones(1, 2, 3, 16)), "does not broadcast"),
        (lambda x: shift(x, torch.ones(16).long()), "float dtype, got torch.strided of torch.int64"),
        (lambda x: shift(x, torch.ones(16).to_sparse()), "dense"),
        (lambda x: shift(x, torch.ones(16, device="meta")), "hidden states lie on cpu, and what edits them on meta"),
        (lambda x: shift(x, torch.ones(16), math.nan), "finite number, got nan"),
        (lambda x: project(x, torch.ones(16)), r"are not \[k, hidden\] or \[rows, k, hidden\]"),
        (lambda x: project(x, torch.ones(2, 15)), "project: directions of shape"),
        (lambda x: project(x, torch.ones(3, 2, 16)), "project: directions of shape"),
        (lambda x: project(x[0], torch.ones(3, 2, 16)), "project: directions of shape"),
    ],
)
def test_what_does_not_fit_is_refused(edit, message):
    with pytest.raises(ValueError, match=message):
        edit(draw(2, 3, 16))


def test_states_wider_than_a_program_are_refused_by_name(on_triton, monkeypatch):
    monkeypatch.setattr(running, "WIDEST", 8)
    with pytest.raises(KernelsUnavailable, match="shift takes hidden states of 8 numbers at most, and these have 16"):
        shift(draw(2, 3, 16), unit(16))
    on_triton.append("shift:triton")
