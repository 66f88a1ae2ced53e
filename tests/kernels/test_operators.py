"""The kernels under a compiler: one node each, no break in the graph, the same numbers."""

import pytest
import torch
from lvlm_guard_kernels import (
    Combination,
    combine,
    entropy,
    jensen_shannon,
    kl,
    layer_divergence,
    project,
    select,
    shift,
    statistics,
    turn,
)
from packaging.version import Version
from torch._subclasses.fake_tensor import FakeTensorMode

traced = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"),
    reason=f"the compiler of torch {torch.__version__} traces no context managers",
)
OPERATORS = {"combine", "select", "statistics", "diverge", "turn", "project", "shift"}


def draw(seed):
    return torch.randn(2, 1, 300, generator=torch.Generator().manual_seed(seed)).mul(3)


MAIN, BRANCH, WEIGHT, STEP = draw(0), draw(1), torch.tensor(0.5), torch.tensor(4)
KEEP = torch.arange(300) != 7


def guarded_step(main, branch, weight, step):
    """What a guarded step computes of logits."""
    combination = Combination(main, [branch], [-weight], 2.0, 0.1, bias=branch[0], keep=KEEP.to(main.device))
    combined = combine(combination)
    measured = statistics(combined)
    drawn = select(combination, temperature=0.7, top_k=50, seed=2**64 + 3, step=step)
    states, vectors = main[..., :48], branch[:, 0, :48]
    turned = turn(states, vectors[0], 0.3, opposed=True)
    projected, shifted = project(turned, vectors, 0.1), shift(states.bfloat16(), vectors[:1], 0.3)
    return (
        turned, projected, shifted,
        combined, measured.log_sum_exp, measured.entropy, measured.best, entropy(main), kl(main, branch),
        jensen_shannon(main, branch), layer_divergence(main, branch[None], "released"), drawn.ids, drawn.broken,
    )  # fmt: skip


@pytest.fixture(params=["torch", "triton"])
def everywhere(request, monkeypatch):
    if request.param == "triton":
        request.getfixturevalue("on_triton")
    else:
        monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")


def assert_same(got, expected):
    assert len(got) == len(expected)
    for value, other in zip(got, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)


@traced
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_step_is_whole_and_gives_the_same(everywhere, backend):
    torch.compiler.reset()
    compiled = torch.compile(guarded_step, fullgraph=True, backend=backend)
    assert_same(compiled(MAIN, BRANCH, WEIGHT, STEP), guarded_step(MAIN, BRANCH, WEIGHT, STEP))
    again = MAIN.flip(-1), BRANCH, WEIGHT + 0.25, STEP + 1
    assert_same(compiled(*again), guarded_step(*again))


@traced
def test_a_compiler_sees_operators_and_none_of_their_insides():
    seen = set()

    def note(graph, _):
        seen.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compiler.reset()
    torch.compile(guarded_step, fullgraph=True, backend=note)(MAIN, BRANCH, WEIGHT, STEP)
    operators = {name for name in seen if name.startswith("lvlm_guard_kernels.")}
    assert {name.split(".")[1] for name in operators} == OPERATORS
    assert not any("amax" in name or "exp" in name for name in seen)


def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones():
    expected = guarded_step(MAIN, BRANCH, WEIGHT, STEP)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        got = guarded_step(*map(mode.from_tensor, (MAIN, BRANCH, WEIGHT, STEP)))
    assert [(value.shape, value.dtype) for value in got] == [(value.shape, value.dtype) for value in expected]


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_an_operator_keeps_what_torch_asks_of_one(name):
    weights = [1.0, 1.0], [None, WEIGHT]
    parts = MAIN, [BRANCH], *weights, 0.1, None, KEEP
    arguments = {
        "combine": parts,
        "select": (*parts, 0.7, 5, 0.9, 3, 0, STEP, False, None),
        "statistics": (MAIN,),
        "diverge": (MAIN, BRANCH[None], "jensen_shannon"),
        "turn": (MAIN, BRANCH, 0.3, True),
        "project": (MAIN, BRANCH[:, 0], 0.3),
        "shift": (MAIN.bfloat16(), BRANCH, 0.3),
    }[name]
    torch.library.opcheck(getattr(torch.ops.lvlm_guard_kernels, name).default, arguments)


@traced
def test_nothing_under_a_compiler_has_a_gradient():
    torch.compiler.reset()
    compiled = torch.compile(guarded_step, fullgraph=True, backend="aot_eager")
    results = compiled(MAIN.clone().requires_grad_(), BRANCH.clone().requires_grad_(), WEIGHT, STEP)
    assert not any(result.requires_grad for result in results)
    leaf = MAIN.clone().requires_grad_()
    operator = torch.ops.lvlm_guard_kernels.combine
    assert not operator(leaf, [BRANCH], [1.0, 1.0], [None, None], 0.1, None, None).requires_grad


def test_what_does_not_fit_is_refused_under_a_compiler_too():
    torch.compiler.reset()
    compiled = torch.compile(lambda main, branch: combine(Combination(main, [branch], [1.0])), backend="eager")
    with pytest.raises(Exception, match="does not fit main of shape"):
        compiled(MAIN, BRANCH[:1])
