"""Directions in which hallucinated captions differ from truthful ones, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lvlm_guard.fitting import AnswerStates, Demonstration, Fitted, Track, encode_answer

RANK = 16
"""How many directions are kept; a strategy takes the first few of them."""


def fit_nullu(
    model: Any, processor: Any, demonstrations: Sequence[Demonstration], track: Track = iter, *, rank: int = RANK
) -> Fitted:
    """Fit `directions [layers, rank, hidden]`: right singular vectors of the differences of mean hidden states, in fp32.

    Yang et al., arXiv 2412.13817: per layer, `E = (truthful - hallucinated) / 2` with a row per demonstration, and its
    singular value decomposition. Hidden states are averaged over the tokens of the caption, which the prompt, the same
    in both, is not part of.
    """
    differences, states = [], AnswerStates(model, processor)
    for demonstration in track(demonstrations):
        answers = (demonstration.correct, demonstration.hallucinated)
        encoded = [encode_answer(model, processor, demonstration, answer) for answer in answers]
        truthful, hallucinated = (states.compute(batch, length).mean(1).cpu() for batch, length in encoded)
        differences.append((truthful - hallucinated) / 2)
    _, _, directions = torch.linalg.svd(torch.stack(differences, dim=1), full_matrices=False)
    first = directions[:, :rank].contiguous()
    return Fitted({"directions": first}, {"rank": first.shape[1]})
