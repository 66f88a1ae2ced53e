"""Directions in which hallucinated captions differ from truthful ones, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.fitting import Demonstration, Fitted, Track, encode, hidden_states

RANK = 16
"""How many directions are kept; a strategy takes the first few of them."""


def fit(
    model: Any, processor: Any, demonstrations: Sequence[Demonstration], track: Track = iter, *, rank: int = RANK
) -> Fitted:
    """Right singular vectors of the differences of mean hidden states: `directions [layers, rank, hidden]`.

    Yang et al., arXiv 2412.13817: per layer, `E = (truthful - hallucinated) / 2` with a row per demonstration, and its
    singular value decomposition. Hidden states are averaged over the tokens of the caption, which the prompt, the same
    in both, is not part of.
    """
    differences = []
    for demonstration in track(demonstrations):
        answers = (demonstration.correct, demonstration.hallucinated)
        truthful, hallucinated = (_mean_state(model, processor, demonstration, answer) for answer in answers)
        differences.append((truthful - hallucinated) / 2)
    _, _, directions = torch.linalg.svd(torch.stack(differences, dim=1), full_matrices=False)
    kept = directions[:, :rank].contiguous()
    return Fitted({"directions": kept}, {"rank": kept.shape[1]})


def _mean_state(model: Any, processor: Any, demonstration: Demonstration, answer: str) -> Tensor:
    """Mean hidden state of an answer's tokens after each layer `[layers, hidden]`."""
    batch, length = encode(model, processor, demonstration, answer)
    return hidden_states(model, batch)[:, -length:].mean(1).cpu()
