"""Steering beside other edits inside the layers."""

from __future__ import annotations

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from fitted import make_artefact, turn_towards, unit
from lvlm_guard_reweighting import PAI
from lvlm_guard_steering import VTI
from twin import Twin

from lvlm_guard.testing import tiny


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize("direction", [1, -1])
def test_attention_and_hidden_edits_stack(tmp_path, architecture, direction):
    """PAI's lifted scores and VTI's turned feed-forwards in one forward; the order of the stack changes nothing."""
    path, tensors = make_artefact(tmp_path, "vti", architecture, tiny(architecture)[0])

    def gold(model, inputs, prefix):
        def lifted(layer, scores):
            rows = torch.arange(scores.shape[-2]) >= twin.prompt - 1
            return torch.where(rows[:, None] & twin.image, scores + 1.5 * scores.abs(), scores)

        twin = Twin(
            model, scores=lifted, mlp=lambda layer, _, y: turn_towards(y, 0.1 * 6.0 * unit(tensors["decoder"][layer]))
        )
        return twin.next(inputs, prefix), Twin(model).next(inputs, prefix)

    stack = [PAI(alpha=1.5, gamma=1.0, layers=(0, 1.0)), VTI(artefact=path, alpha_text=6.0, alpha_image=0.0)]
    check(stack[::direction], gold, architecture)
