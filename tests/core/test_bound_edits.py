"""Named edits in one call: checked once for each layer, and again as soon as what they get is another thing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lvlm_guard import HiddenEdit, InputError, Project, Shift, Turn
from lvlm_guard.arithmetic import hidden_edits
from lvlm_guard.arithmetic.hidden_edits import apply_edit

STATES, VECTORS = torch.ones(2, 3, 8), [torch.full((8,), float(layer + 1)) for layer in range(3)]


def look(layer):
    return SimpleNamespace(layer=layer)


@pytest.fixture
def searches(monkeypatch):
    """Names of the kernels that were looked for."""
    names = []

    def find(name, *rest, find=hidden_edits.find_kernel):
        names.append(name)
        return find(name, *rest)

    monkeypatch.setattr(hidden_edits, "find_kernel", find)
    return names


@pytest.mark.parametrize(
    "edit",
    [
        lambda find: Turn(find, 0.5),
        lambda find: Shift(find, 0.5),
        lambda find: Project(lambda states, view: find(states, view)[None], 0.5),
    ],
)
def test_a_kernel_is_looked_for_once_for_all_layers_and_steps(searches, edit):
    edit, kernels = HiddenEdit("mlp", edit(lambda _, view: VECTORS[view.layer])), {}
    for _ in range(4):
        results = [apply_edit(edit, STATES[:, :1], look(layer), kernels) for layer in range(3)]
    assert len(searches) == 1
    apply_edit(edit, STATES, look(0), kernels)
    assert len(searches) == 2
    again = [apply_edit(edit, STATES[:, :1], look(layer), {}) for layer in range(3)]
    assert all(map(torch.equal, results, again))


def test_every_layer_gets_its_own_vectors_whenever_they_change():
    given = dict(enumerate(VECTORS))
    edit, kernels = HiddenEdit("mlp", Shift(lambda _, view: given[view.layer])), {}
    for step in range(3):
        for layer in range(3):
            assert torch.equal(apply_edit(edit, STATES, look(layer), kernels), STATES + given[layer])
        given[0], given[1] = given[1], given[0]
        given[2] += step + 1.0  # in place: the same tensor with other values


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(8).long(),
        torch.ones(8) * 1j,
        torch.ones(7),
        torch.ones(1),
        torch.ones(8).to_sparse(),
        [1.0] * 8,
        None,
    ],
)
def test_vectors_that_do_not_fit_any_more_are_refused(other):
    given = [VECTORS[0]]
    edit, kernels = HiddenEdit("mlp", Shift(lambda *_: given[0])), {}
    apply_edit(edit, STATES, look(0), kernels)
    given[0] = other
    with pytest.raises(InputError):
        apply_edit(edit, STATES, look(0), kernels)


def test_vectors_that_shrink_in_place_are_refused():
    vector = torch.ones(8)
    edit, kernels = HiddenEdit("mlp", Shift(vector)), {}
    apply_edit(edit, STATES, look(0), kernels)
    vector.resize_(1)
    with pytest.raises(InputError, match="does not broadcast"):
        apply_edit(edit, STATES, look(0), kernels)


def test_a_layer_elsewhere_gets_a_kernel_of_its_own(searches):
    edit, kernels = HiddenEdit("mlp", Shift(VECTORS[0])), {}
    for _ in range(2):
        here = apply_edit(edit, STATES, look(0), kernels)
        there = apply_edit(edit, STATES.to("meta"), look(1), kernels)
        assert (here.device.type, there.device.type) == ("cpu", "meta")
    assert len(searches) == 2


def test_states_of_another_dtype_get_the_kernel_for_it(searches):
    edit, kernels = HiddenEdit("mlp", Shift(VECTORS[0], 0.5)), {}
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        assert torch.equal(apply_edit(edit, STATES.to(dtype), look(0), kernels), STATES.to(dtype) + 0.5 * VECTORS[0])
    assert len(searches) == 2
