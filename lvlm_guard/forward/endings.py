"""Which rows of generated tokens have ended, as generate itself decides it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StopStringCriteria


class Endings:
    """Tell which rows have ended.

    Args:
        settings: The resolved generation config: end tokens and padding.
        stop_strings: Texts that end a row, or None.
        tokenizer: The tokenizer that generate finds stop strings with.
        has_criteria: Whether the caller brings stopping criteria of their own.
    """

    def __init__(self, settings: Any, stop_strings: Any, tokenizer: Any, *, has_criteria: bool) -> None:
        self._ends = _token_ids(settings.eos_token_id)
        self._stops = StopStringCriteria(tokenizer, stop_strings) if stop_strings else None
        padding = _token_ids(settings.pad_token_id)
        self._padding = padding if self._ends and (self._stops is not None or has_criteria) else []

    def find_finished(self, prompts: Tensor, generated: Tensor) -> Tensor:
        """Return which rows have ended, bool `[rows]`; prompts and generated tokens `[rows, length]`."""
        if not generated.shape[1]:
            return torch.zeros(generated.shape[0], dtype=torch.bool, device=generated.device)
        finished = _contains(generated, self._ends) | _contains(generated[:, -1:], self._padding)
        if self._stops is None:
            return finished
        stopped: Tensor = self._stops(torch.cat([prompts.to(generated), generated], dim=1), None)
        return finished | stopped.to(finished.device)

    def mark_unfinished(self, generated: Tensor) -> Tensor:
        """Return which generated tokens `[rows, length]` belong to rows that had not ended, bool alike; an end belongs to its row."""
        ends = torch.tensor([*self._ends, *self._padding], dtype=generated.dtype, device=generated.device)
        ended = torch.isin(generated, ends).long()
        return (ended.cumsum(1) - ended) == 0


def _contains(tokens: Tensor, ids: list[int]) -> Tensor:
    return torch.isin(tokens, torch.tensor(ids, dtype=tokens.dtype, device=tokens.device)).any(1)


def _token_ids(value: Any) -> list[int]:
    if value is None:
        return []
    tokens = value.flatten().tolist() if isinstance(value, Tensor) else value
    return [tokens] if isinstance(tokens, int) else [int(token) for token in tokens]
