"""The tokens that generate has chosen so far, and which of them a forward call feeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_guard.forward import caches
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.protocols import Cache


@dataclass(frozen=True)
class Step:
    """One forward call of generate.

    Args:
        past: Generated tokens that were fed before this call.
        new: Generated tokens that this call feeds.
        keep: Last positions whose logits generate reads.
        first_position: Index among the generated tokens that the first of them predicts.
        is_prefill: Whether the prompt runs in this call.
    """

    past: int
    new: int
    keep: int
    first_position: int
    is_prefill: bool = False


class TokenHistory:
    """Generated tokens of every row, kept in step with generate.

    Args:
        main: Main as generate prepared it; the prompt.
        cached: Whether generate keeps a cache and so passes only new tokens.
    """

    def __init__(self, main: PreparedDecode, *, cached: bool) -> None:
        self._main = main
        self._cached = cached
        self.tokens = torch.empty(0, 0, dtype=torch.long, device=main.input_ids.device)
        """Generated tokens `[rows, tokens]`, those of the current forward included."""

    @property
    def length(self) -> int:
        """Number of generated tokens in a row."""
        return int(self.tokens.shape[1])

    def begin(self, ids: Tensor | None) -> Step:
        """Start with the ids of the prefill; assisted decoding may already add candidates behind the prompt."""
        prompt = self._main.input_ids
        self.tokens = (prompt if ids is None else ids)[:, prompt.shape[1] :]
        return Step(past=0, new=self.length, keep=self.length + 1, first_position=0, is_prefill=True)

    def advance(self, ids: Tensor, cache: Cache | None) -> Step:
        """Append the tokens that this call feeds; tokens that the cache has forgotten were rejected."""
        if not self._cached:
            past = self.length
            self.tokens = ids[:, self._main.input_ids.shape[1] :]
            return Step(past, self.length - past, keep=1, first_position=self.length)
        past, new = caches.length_of(cache) - self._main.length, int(ids.shape[1])
        accepted = self.tokens.to(ids.device)[:, :past] if self.tokens.numel() else ids[:, :0]
        self.tokens = torch.cat([accepted, ids], dim=1)
        return Step(past, new, keep=new, first_position=past + 1)

    def select(self, index: Tensor) -> None:
        """Continue row `index[i]` in row i."""
        self.tokens = self.tokens.index_select(0, index.to(self.tokens.device))
