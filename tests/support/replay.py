"""What a plain model's own decode gives for tokens that somebody else chose: generate runs, and is told every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class FixedTokens:
    """Allow the tokens of a table `[rows, steps]` alone."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self._tokens[:, self._step : self._step + 1]
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def replay(model: Any, inputs: Mapping[str, Any], tokens: Tensor, **settings: Any) -> Tensor:
    """Raw logits `[steps, rows, vocab]` of the model's own decode of `tokens` `[rows, steps]`, unguarded."""
    output = model.generate(
        **inputs,
        max_new_tokens=tokens.shape[1],
        min_new_tokens=tokens.shape[1],
        do_sample=False,
        logits_processor=[FixedTokens(tokens)],
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )
    return torch.stack(output.logits)
