"""One branch with a cache and a forward of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.forward import caches, model_inputs
from lvlm_guard.forward.executors.executor import Run
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.protocols import Cache


class BranchRun:
    """The decode of one branch, fed the tokens that main chose.

    Args:
        prepared: The branch as generate prepared it.
    """

    def __init__(self, prepared: PreparedDecode) -> None:
        self._prepared = prepared
        self._module = prepared.module
        self._kwargs = prepared.kwargs
        self._carried = 0
        self._ropes = anatomy.rope_owners(prepared.module)
        self._rope_state: list[Any] = [None] * len(self._ropes)
        self.prefill_inputs: dict[str, Any] = {}

    @property
    def cache(self) -> Cache | None:
        """The branch's cache."""
        cache: Cache | None = self._kwargs.get("past_key_values")
        return cache

    @property
    def length(self) -> int:
        """Length of the branch's prompt."""
        return self._prepared.length

    @property
    def prompt_mask(self) -> Tensor | None:
        """Attention mask of the prompt `[rows, length]`, or None when all of it is attended to."""
        mask = self._prepared.kwargs.get("attention_mask")
        return mask if isinstance(mask, Tensor) else None

    def feed(self, run: Run, generated: Tensor, new: int, keep: int, *, first: bool = False) -> Tensor:
        """Run the branch over the last `new` of the `generated` tokens `[rows, tokens]` (the prompt too when `first`).

        Returns:
            Raw logits of the last `keep` positions `[rows, keep, vocab]`.
        """
        tokens = generated.shape[1]
        self.synchronise(tokens - new)
        self._carry(tokens)
        ids = torch.cat([self._prepared.input_ids, generated.to(self._prepared.input_ids.device)], dim=1)
        with self._own_rope():
            past = caches.length_of(self.cache)
            inputs = model_inputs.prepare_forward(self._module, ids, self._kwargs, past=past, first=first)
            if "logits_to_keep" in inputs:
                inputs["logits_to_keep"] = keep
            output = run(**{**inputs, "return_dict": True})
        self._remember(inputs, output, first=first)
        return output.logits[:, -keep:]

    def synchronise(self, tokens: int) -> None:
        """Forget generated tokens from `tokens` on, as main did with rejected candidates."""
        if self.cache is not None and caches.length_of(self.cache):
            caches.crop(self.cache, self.length + tokens)

    def repeat(self, times: int) -> None:
        """Go on with every row repeated, as long as nothing but the prompt was fed; `reorder` does the same to the cache."""
        rows = self._prepared.input_ids.shape[0]
        self._prepared = model_inputs.repeat_rows(self._prepared, times)
        self._kwargs = self._prepared.kwargs
        self._rope_state = [_repeat_rows(state, times, rows, 0) for state in self._rope_state]
        self.prefill_inputs = {
            name: _repeat_rows(value, times, rows, -2) for name, value in self.prefill_inputs.items()
        }

    def release(self) -> None:
        """Let go of cache and inputs, once the rows live in a joined cache."""
        self._kwargs = {}
        self._prepared.kwargs = {}

    def reorder(self, index: Tensor) -> None:
        """Follow a reordering of generate's rows."""
        if self.cache is not None:
            self.cache.reorder_cache(index)

    def _carry(self, tokens: int) -> None:
        if tokens < self._carried:
            self._kwargs = model_inputs.shorten_kwargs(self._kwargs, self._carried - tokens)
        elif tokens > self._carried:
            self._kwargs = model_inputs.extend_kwargs(self._module, self._kwargs, tokens - self._carried)
        self._carried = tokens

    def _remember(self, inputs: dict[str, Any], output: Any, *, first: bool) -> None:
        if (cache := getattr(output, "past_key_values", None)) is not None:
            self._kwargs["past_key_values"] = cache
        if first:
            self.prefill_inputs = {name: inputs.get(name) for name in ("position_ids",)}

    @contextmanager
    def _own_rope(self) -> Iterator[None]:
        """Some versions keep rope deltas on the module: use this branch's, then put main's back."""
        main_state = [owner.rope_deltas for owner in self._ropes]
        for owner, state in zip(self._ropes, self._rope_state, strict=True):
            owner.rope_deltas = state
        try:
            yield
        finally:
            self._rope_state = [owner.rope_deltas for owner in self._ropes]
            for owner, state in zip(self._ropes, main_state, strict=True):
                owner.rope_deltas = state


def _repeat_rows(value: Any, times: int, rows: int, dimension: int) -> Any:
    """A tensor with its rows repeated; what is no tensor, or has one row for all, as it is."""
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[dimension] != rows:  # noqa: PLR2004 - rows, positions
        return value
    return value.repeat_interleave(times, dim=dimension)
