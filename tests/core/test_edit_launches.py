"""How many operations steering adds to a layer of a decode step: on a GPU each is a launch, and the step waits for it."""

from __future__ import annotations

import pytest
import torch
from counted_operations import CountOperations
from fitted import make_artefact
from lvlm_guard_contrastive import VCD
from lvlm_guard_kernels import dispatch, launch, record_paths
from lvlm_guard_kernels.hidden import reference
from lvlm_guard_steering import VSV, VTI, Nullu
from torch.utils._python_dispatch import _disable_current_modes

from lvlm_guard.forward.interventions.hidden import HiddenHooks
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import Words

from lvlm_guard import Guard  # isort: skip

TOKENS = 5
BEFORE = {"vsv": 11, "vti": 7, "nullu": 5, "vsv beside a branch": 13}
"""Operations of a layer when strategies still wrote them one by one, in fp32; bf16 needs two more."""
MOST_LAUNCHES = 2
SETTINGS = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(params=BEFORE)
def stack(request, tmp_path):
    model, _ = tiny("llava")

    def path(kind):
        return make_artefact(tmp_path, kind, "llava", model)[0]

    stacks = {
        "vsv": lambda: [VSV(strength=0.8)],
        "vti": lambda: [VTI(artefact=path("vti"), alpha_text=6.0, alpha_image=0.0)],
        "nullu": lambda: [Nullu(artefact=path("nullu"))],
        "vsv beside a branch": lambda: [VSV(strength=0.8), VCD(beta=0.0)],
    }
    return request.param, stacks[request.param]()


@pytest.fixture
def of_layers(monkeypatch):
    """Operations of each layer's edit in decode steps, the last step's at the end."""
    counts, edit = [], HiddenHooks._edit

    def count(hooks, hidden, *arguments):
        with CountOperations() as operations:
            edited = edit(hooks, hidden, *arguments)
        if hidden.shape[1] == 1:
            counts.append(operations.names)
        return edited

    monkeypatch.setattr(HiddenHooks, "_edit", count)
    return counts


@pytest.fixture
def launches(monkeypatch):
    """Kernels that are launched; torch computes what they would, unseen."""
    counts = []

    def compute(kernel, grid, arguments, **constants):
        counts.append(kernel)
        hidden, operand, out, strength = (arguments[index] for index in (0, 3, 6, -1))
        with _disable_current_modes():
            if kernel.__name__ == "turn_states":
                edited = reference.turn(hidden, operand, strength, opposed=constants["OPPOSED"])
            else:
                edited = reference.project(hidden, operand, strength)
            out.view(edited.shape).copy_(edited)

    monkeypatch.setattr(dispatch, "find_obstacle", lambda *_, **__: None)
    monkeypatch.setattr(launch, "run", compute)
    return counts


def generate(stack):
    model, inputs = tiny("llava")
    return torch.stack(Guard(model, Words(), stack).generate(**inputs, **SETTINGS).logits)


def test_on_torch_a_layer_runs_fewer_operations_than_a_strategy_wrote(stack, of_layers, monkeypatch):
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    name, strategies = stack
    generate(strategies)
    assert 0 < len(of_layers[-1]) <= BEFORE[name]


def test_on_triton_a_layer_is_two_launches_at_most(stack, of_layers, launches, monkeypatch):
    name, strategies = stack
    model, inputs = tiny("llava")
    plain = torch.stack(model.generate(**inputs, **SETTINGS).logits)
    monkeypatch.setenv("LVLM_GUARD_KERNELS", "torch")
    expected = generate(strategies)
    assert not launches
    monkeypatch.setattr(dispatch, "find_provider", choose_triton_for_states)
    of_layers.clear()
    with record_paths() as ran:
        got = generate(strategies)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (got - plain).abs().amax() > 0.1
    assert {path for path in ran if path.split(":")[0] in ("turn", "project")} <= {"turn:triton", "project:triton"}
    layers = 1 if name == "nullu" else 3
    assert len(launches) >= layers * TOKENS
    for names in of_layers[-layers:]:
        assert 1 + len(names) <= MOST_LAUNCHES, names


def choose_triton_for_states(*tensors, obstacle=None):
    """States `[rows, positions, 32]` take Triton, logits torch."""
    return "triton" if tensors[0].shape[-1] == 32 else "torch"
