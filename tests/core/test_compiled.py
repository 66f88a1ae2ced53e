"""Compiled models: branches leave them compiled; work inside the layers runs them as written, and says so."""

import contextlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from gold import SUPPRESSED, Against

from lvlm_guard import Guard, UncompiledWarning, fitting, hookimpl
from lvlm_guard.forward import is_compiled, run_uncompiled
from lvlm_guard.testing import tiny

SETTINGS = {
    "max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip
INSIDE = [{"name": "vsv", "params": {"strength": 1.0}}, "vaf", "deco"]
TOLERANCE = 1e-4


class Backend:
    """Runs graphs as they are, and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend():
    torch._dynamo.reset()
    logging.disable(logging.WARNING)  # of graph breaks and recompilations
    yield Backend()
    logging.disable(logging.NOTSET)
    torch._dynamo.reset()


def compile_forward(model, backend):
    model.forward = torch.compile(model.forward, backend=backend)


def compile_module(model, backend):
    model.compile(backend=backend)


def compile_decoder(model, backend):
    model.model.language_model = torch.compile(model.model.language_model, backend=backend)


def compile_layers(model, backend):
    for layer in model.model.language_model.layers:
        layer.compile(backend=backend)


WAYS = [compile_forward, compile_module, compile_decoder, compile_layers]


def apart(one, other):
    """Greatest difference of the logits of two answers."""
    pairs = zip(one.logits, other.logits, strict=True)
    return max(float((mine - theirs).nan_to_num(nan=0.0).abs().max()) for mine, theirs in pairs)  # both -inf: equal


@pytest.fixture(scope="module")
def answers():
    model, inputs = tiny("llava")
    plain = model.generate(**inputs, **SETTINGS)
    branch = Guard(model, None, [Against("noised")]).generate(**inputs, **SETTINGS)
    inside = Guard(model, None, INSIDE).generate(**inputs, **SETTINGS)
    assert min(apart(branch, plain), apart(inside, plain)) > 0.1, "no power"
    return {"plain": plain, "branch": branch, "inside": inside}


@pytest.mark.parametrize("compiled", [way for way in WAYS if way is not compile_module], ids=lambda way: way.__name__)
def test_branches_leave_a_model_compiled(answers, backend, compiled):
    model, inputs = tiny("llava")
    compiled(model, backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncompiledWarning)
        guarded = Guard(model, None, [Against("noised")]).generate(**inputs, **SETTINGS)
    assert apart(guarded, answers["branch"]) < TOLERANCE
    assert backend.graphs


def test_a_compiled_module_is_told_to_compile_its_forward(answers, backend):
    model, inputs = tiny("llava")
    compile_module(model, backend)
    with pytest.warns(UncompiledWarning, match="model.forward = torch.compile"):
        guarded = Guard(model, None, [Against("noised")]).generate(**inputs, **SETTINGS)
    assert apart(guarded, answers["branch"]) < TOLERANCE


@pytest.mark.parametrize(
    "compiled",
    [compile_forward, compile_layers, *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[1:3])],
    ids=lambda way: way.__name__,
)
def test_work_inside_the_layers_is_right_on_a_model_that_ran_compiled(answers, backend, compiled):
    model, inputs = tiny("llava")
    compiled(model, backend)
    assert is_compiled(model)
    assert apart(model.generate(**inputs, **SETTINGS), answers["plain"]) < TOLERANCE
    before = backend.graphs
    with pytest.warns(UncompiledWarning, match="ran uncompiled"):
        guarded = Guard(model, None, INSIDE).generate(**inputs, **SETTINGS)
    assert apart(guarded, answers["inside"]) < TOLERANCE
    assert backend.graphs == before > 0
    torch._dynamo.reset()
    assert apart(model.generate(**inputs, **SETTINGS), answers["plain"]) < TOLERANCE
    assert backend.graphs > before, "the model stayed uncompiled"


@pytest.mark.parametrize(("stack", "wanted"), [([Against("noised")], "branch"), (INSIDE, "inside")])
def test_what_torch_compile_returns_can_be_guarded(answers, backend, stack, wanted):
    model, inputs = tiny("llava")
    compiled = torch.compile(model, backend=backend)
    guard = Guard(compiled, None, stack)
    assert apart(guard.generate(**inputs, **SETTINGS), answers[wanted]) < TOLERANCE
    with guard.attached():
        assert apart(compiled.generate(**inputs, **SETTINGS), answers[wanted]) < TOLERANCE
    assert apart(compiled.generate(**inputs, **SETTINGS), answers["plain"]) < TOLERANCE


def test_states_that_a_fit_collects_are_those_of_the_model_run_uncompiled(backend):
    model, inputs = tiny("llava")
    batch = {name: value[:1] for name, value in inputs.items()}
    with torch.no_grad():
        wanted = fitting.compute_hidden_states(model, batch)
        compile_layers(model, backend)
        model(**batch)
        assert torch.allclose(fitting.compute_hidden_states(model, batch), wanted, atol=TOLERANCE)


def test_blocks_that_overlap_share_the_switch(backend):
    double = torch.compile(lambda values: values * 2, backend=backend)
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(run_uncompiled())
    second.enter_context(run_uncompiled())
    first.close()
    double(torch.ones(2))
    assert backend.graphs == 0
    second.close()
    double(torch.ones(2))
    assert backend.graphs == 1


def test_a_block_that_fails_turns_the_switch_back(backend):
    double = torch.compile(lambda values: values * 2, backend=backend)
    with pytest.raises(ZeroDivisionError), run_uncompiled():
        raise ZeroDivisionError
    double(torch.ones(2))
    assert backend.graphs == 1


@dataclass(frozen=True)
class Looking(Against):
    """Looks at something while a guarded call runs."""

    look: Callable[[], None] = int

    @hookimpl
    def observe(self, gen):
        self.look()


def test_a_guard_at_work_does_not_make_a_model_look_compiled():
    model, inputs = tiny("llava")
    seen = []
    stack = [Looking("noised", look=lambda: seen.append(("forward" in vars(model), is_compiled(model))))]
    Guard(model, None, stack).generate(**inputs, **SETTINGS)
    assert set(seen) == {(True, False)}
