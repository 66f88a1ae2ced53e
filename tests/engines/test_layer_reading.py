"""Layers of an engine's model, read at the last positions of its requests as the model reads its last layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lvlm_guard import ModelRefused
from lvlm_guard.engines.vllm.layer_reading import LayerReader

HIDDEN, VOCAB, DEPTH = 8, 11, 3
ROWS = torch.tensor([2, 6])


class FusedLayer(nn.Module):
    """A layer that hands hidden states and residual on apart, and overwrites both later, as engines do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden, residual):
        residual = hidden.clone() if residual is None else residual.add_(hidden)
        return self.linear(residual).tanh(), residual


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(FusedLayer() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, hidden):
        residual, self.seen = None, []
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
            self.seen.append((hidden + residual).clone())
        return self.norm(hidden + residual)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Decoder()
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def compute_logits(self, hidden):
        return self.head(hidden)


@pytest.fixture
def language():
    torch.manual_seed(0)
    return Language().requires_grad_(requires_grad=False)


def run(language, reader):
    hidden = torch.randn(8, HIDDEN, generator=torch.Generator().manual_seed(1))
    logits = language.compute_logits(language.model(hidden))[ROWS]
    assert reader.layers_to_keep is not None
    return logits


@pytest.mark.parametrize("final_norm", [True, False])
def test_states_are_read_through_norm_and_head(language, final_norm):
    reader = LayerReader(language, lambda: ROWS)
    reader.layers_to_keep = {1, 2}
    undo = reader.install()
    logits = run(language, reader)
    for row in range(len(ROWS)):
        read = reader.read(row, [1, 2], logits[row], final_norm=final_norm)
        states = torch.stack([language.model.seen[layer][ROWS[row]] for layer in (0, 1)])
        expected = language.head(language.model.norm(states) if final_norm else states)
        assert torch.allclose(read, expected, atol=1e-6)
        assert (read - logits[row]).abs().max() > 0.1
    undo()
    assert not any(layer._forward_hooks for layer in language.model.layers)


def test_embeddings_are_read_as_the_input_of_the_first_layer(language):
    reader = LayerReader(language, lambda: ROWS)
    reader.layers_to_keep = {0}
    reader.install()
    logits = run(language, reader)
    embedded = torch.randn(8, HIDDEN, generator=torch.Generator().manual_seed(1))
    read = reader.read(1, [0], logits[1], final_norm=True)
    assert torch.allclose(read, language.head(language.model.norm(embedded[ROWS[1]]))[None], atol=1e-6)


def test_a_head_that_is_not_the_models_is_refused(language):
    reader = LayerReader(language, lambda: ROWS)
    reader.layers_to_keep = {1}
    reader.install()
    logits = run(language, reader)
    with pytest.raises(ModelRefused, match="differs from the logits"):
        reader.read(0, [1], logits[0] * 2 + 1, final_norm=True)


def test_layers_that_gave_nothing_are_refused(language):
    reader = LayerReader(language, lambda: ROWS)
    reader.install()
    logits = run(language, reader)
    with pytest.raises(ModelRefused, match="enforce_eager"):
        reader.read(0, [1], logits[0], final_norm=True)


def test_a_model_without_layers_in_their_place_is_refused():
    with pytest.raises(ModelRefused, match="shows no decoder layers"):
        LayerReader(nn.Linear(2, 2), lambda: ROWS)
