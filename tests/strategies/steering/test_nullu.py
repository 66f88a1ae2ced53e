"""y - strength P y on feed-forward outputs; P projects on k fitted directions."""

from __future__ import annotations

import copy

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from fitted import FittedContract, make_artefact
from lvlm_guard_steering import Nullu
from twin import Twin

from lvlm_guard.testing import tiny


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_nullu(tmp_path, architecture):
    path, tensors = make_artefact(tmp_path, "nullu", architecture, tiny(architecture)[0])

    def gold(model, inputs, prefix):
        """The published edit: the last weight of the block times `I - P`, in a copy of the model."""
        edited = copy.deepcopy(model)
        for layer in (1, 2):
            found = tensors["directions"][layer, :4]
            weight = edited.get_decoder().layers[layer].mlp.down_proj.weight
            with torch.no_grad():
                weight.copy_((torch.eye(32) - found.T @ found) @ weight)
        return Twin(edited).next(inputs, prefix), Twin(model).next(inputs, prefix)

    def gold_behind_norm(model, inputs, prefix):
        """Where a norm stands behind the block, what it gives loses the directions: it is what is added to the stream."""
        twin = Twin(model)

        def remove(layer, _, added):
            directions = tensors["directions"][layer, :4]
            return added - added @ directions.T @ directions if layer in (1, 2) else added

        twin.mlp = remove
        return twin.next(inputs, prefix), Twin(model).next(inputs, prefix)

    formula = gold_behind_norm if architecture == "gemma3" else gold
    check([Nullu(path, layers=(1 / 3, 1.0))], formula, architecture)


class TestNullu(FittedContract):
    strategy = Nullu("made when needed")
