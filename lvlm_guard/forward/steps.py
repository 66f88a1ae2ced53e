"""The steps of a decode: which tokens a forward call feeds, what came of it, and the tokens chosen so far."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from lvlm_guard.errors import ModeRefused
from lvlm_guard.forward import caches
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.protocols import Cache
from lvlm_guard.strategy.forward import Forward


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


@dataclass(frozen=True)
class StepLogits:
    """What an executor returns.

    Args:
        output: Main's output, as its own forward would have returned it.
        main: Raw logits of main `[rows, positions, vocab]`, the kept positions last.
        branches: Raw logits of each branch, kept positions last.
        readouts: Logits of inner layers of main `[rows, kept, vocab]`, by (layer, whether normed).
        forwards: Forwards that ran.
    """

    output: ModelOutput
    main: Tensor
    branches: Mapping[Hashable, Tensor]
    readouts: Mapping[tuple[int, bool], Tensor]
    forwards: int

    def as_forward(self, step: Step, tokens: Tensor) -> Forward:
        """The kept positions and the generated `tokens` before them, as strategies see them, on main's device."""
        keep = min(step.keep, self.main.shape[1])
        branches = {key: logits[:, -keep:].to(self.main.device) for key, logits in self.branches.items()}
        return Forward(self.main[:, -keep:], branches, step.first_position, readouts=self.readouts, tokens=tokens)

    def answer(self, combined: Tensor | None) -> ModelOutput:
        """Main's output with the combined logits in place of its own at the kept positions."""
        if combined is not None:
            before = self.main[:, : -combined.shape[1]]
            self.output["logits"] = torch.cat([before.float(), combined], dim=1) if before.shape[1] else combined
        return self.output


class TokenHistory:
    """Generated tokens of every row, kept in step with generate.

    Args:
        main: Main as generate prepared it; the prompt.
        cached: Whether generate keeps a cache and so passes only new tokens.
    """

    def __init__(self, main: PreparedDecode, *, cached: bool) -> None:
        self._main = main
        self._cached = cached
        self._extra_positions = 0
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

    def measure(self, cache: Cache | None) -> None:
        """Find, right after the prefill, how many positions main's cache holds that no id stands for."""
        self._extra_positions = caches.positions_beside(cache, self._main.length + self.length)

    @property
    def is_in_step(self) -> bool:
        """Whether main's cache holds exactly as many positions as the prompt has ids."""
        return self._extra_positions == 0

    def check_cache(self, cache: Cache | None) -> None:
        """Check that main's cache shows every token that was fed.

        Raises:
            ModeRefused: It does not, so nothing tells which tokens the next forward goes on from.
        """
        if self._cached and self._count_in(cache) != self.length:
            self._refuse(cache)

    def advance(self, ids: Tensor | None, cache: Cache | None) -> Step:
        """Append the tokens that this call feeds; tokens that the cache has forgotten were rejected.

        Raises:
            ModeRefused: The cache shows a number of positions that cannot be, or the call feeds no ids.
        """
        if ids is None:
            raise ModeRefused(
                f"{type(self._main.module).__name__} decodes from embeddings after its prompt, so nothing tells which tokens branches are to "
                "follow. A wrapper may do so that does not know this version of transformers: try plain generate, or another version."
            )
        if not self._cached:
            past = self.length
            self.tokens = ids[:, self._main.input_ids.shape[1] :]
            return Step(past, self.length - past, keep=1, first_position=self.length)
        past, new = self._count_in(cache), int(ids.shape[1])
        if not 0 <= past <= self.length:
            self._refuse(cache)
        accepted = self.tokens.to(ids.device)[:, :past] if self.tokens.numel() else ids[:, :0]
        self.tokens = torch.cat([accepted, ids], dim=1)
        return Step(past, new, keep=new, first_position=past + 1)

    def _count_in(self, cache: Cache | None) -> int:
        """How many generated tokens a cache holds."""
        return caches.length_of(cache) - self._main.length - self._extra_positions

    def _refuse(self, cache: Cache | None) -> NoReturn:
        model, kind = type(self._main.module).__name__, "no cache" if cache is None else f"a {type(cache).__name__}"
        raise ModeRefused(
            f"{model} decodes with {kind} that shows {caches.length_of(cache)} positions where "
            f"{self._main.length + self._extra_positions + self.length} were run, so branches cannot be kept in step with it. Pass "
            "use_cache=False."
        )

    def select(self, index: Tensor) -> None:
        """Continue row `index[i]` in row i."""
        self.tokens = self.tokens.index_select(0, index.to(self.tokens.device))
