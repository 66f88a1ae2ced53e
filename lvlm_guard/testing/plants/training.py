"""A decoder that learnt what to say from other pictures than those it was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lvlm_guard.testing.plants.subject import PlantBed, Undo

Example = tuple[Mapping[str, Any], torch.Tensor]
"""Model inputs, and labels `[rows, length]`: the token behind each position, -100 where it does not count."""


def train_decoder(subject: PlantBed, examples: Sequence[Example], *, rate: float) -> Undo:
    """Fine-tune the decoder on examples, one step each; the undo puts exactly the old weights back."""
    weights = list(subject.layers.parameters())
    old_values = [weight.detach().clone() for weight in weights]
    flags = [weight.requires_grad for weight in subject.model.parameters()]

    def undo() -> None:
        with torch.no_grad():
            for weight, values in zip(weights, old_values, strict=True):
                weight.copy_(values)

    try:
        with torch.enable_grad():
            _train(subject, weights, examples, rate)
    except BaseException:
        undo()
        raise
    finally:
        for weight, value in zip(subject.model.parameters(), flags, strict=True):
            weight.requires_grad_(value)
            weight.grad = None
    return undo


def _train(subject: PlantBed, weights: list[Any], examples: Sequence[Example], rate: float) -> None:
    subject.model.requires_grad_(requires_grad=False)
    for weight in weights:
        weight.requires_grad_(requires_grad=True)
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    for inputs, labels in examples:
        logits = subject.model(**inputs, use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
