"""One branch with a cache and a forward of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.cache_names import find_cache, name_of_cache
from lvlm_guard.forward import caches, model_inputs
from lvlm_guard.forward.executors.executor import Run
from lvlm_guard.forward.kept_prompts import KeptPrompt, keep_prompt
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
        self._extra_positions = 0
        self._output: Any = None

    @property
    def cache(self) -> Cache | None:
        """The branch's cache."""
        cache: Cache | None = find_cache(self._kwargs)
        return cache

    @property
    def length(self) -> int:
        """Length of the branch's prompt."""
        return self._prepared.length

    @property
    def is_in_step(self) -> bool:
        """Whether the cache holds exactly as many positions as the prompt has ids."""
        return self._extra_positions == 0

    @property
    def prompt_mask(self) -> Tensor | None:
        """Attention mask of the prompt `[rows, length]`, or None when all of it is attended to."""
        return self._prepared.prompt_mask

    def feed(self, run: Run, generated: Tensor, new: int, keep: int, *, first: bool = False) -> Tensor:
        """Run the branch over the last `new` of the `generated` tokens `[rows, tokens]` (the prompt too when `first`).

        Returns:
            Raw logits of the last `keep` positions `[rows, keep, vocab]`.
        """
        self.synchronise(generated.shape[1] - new)
        with self._own_rope():
            inputs = self._prepare(generated, new, first=first)
            if "logits_to_keep" in inputs:
                inputs["logits_to_keep"] = keep
            output = run(**{**inputs, "return_dict": True})
        self._remember(output)
        if first:
            self._extra_positions = caches.positions_beside(self.cache, self.length + generated.shape[1])
        return output.logits[:, -keep:]

    def prepare_next(self, generated: Tensor, new: int) -> dict[str, Any]:
        """What `feed` would run the module with after the prefill; nothing is run."""
        self.synchronise(generated.shape[1] - new)
        with self._own_rope():
            return self._prepare(generated, new, first=False)

    def keep_prompt(self, tokens: int) -> KeptPrompt | str:
        """Keep the prompt as its prefill, with `tokens` further ones, left it, or say why nothing can go on from it."""
        return keep_prompt(self._prepared, self.cache, tokens)

    def synchronise(self, tokens: int) -> None:
        """Forget generated tokens from `tokens` on, as main did with rejected candidates."""
        if self.cache is not None and caches.length_of(self.cache):
            caches.crop(self.cache, self.length + self._extra_positions + tokens)

    def repeat(self, times: int) -> None:
        """Go on with every row repeated, as long as nothing but the prompt was fed; `reorder` does the same to the cache."""
        rows = self._prepared.input_ids.shape[0]
        self._prepared = model_inputs.repeat_rows(self._prepared, times)
        self._kwargs = self._prepared.kwargs
        self._rope_state = [_repeat_rows(state, times, rows) for state in self._rope_state]
        for name, value in list((self._output or {}).items()):
            self._output[name] = _repeat_rows(value, times, rows)

    def release(self) -> None:
        """Let go of cache and inputs, once the rows live in a joined cache."""
        self._kwargs, self._output = {}, None
        self._prepared.kwargs = {}

    def reorder(self, index: Tensor) -> None:
        """Follow a reordering of generate's rows."""
        if self.cache is not None:
            self.cache.reorder_cache(index)

    def _prepare(self, generated: Tensor, new: int, *, first: bool) -> dict[str, Any]:
        self._carry(generated.shape[1])
        prompt = self._prepared.input_ids
        ids = torch.cat([prompt, generated.to(prompt.device)], dim=1)
        past = caches.length_of(self.cache)
        return model_inputs.prepare_forward(self._module, ids, self._kwargs, past=past, new=new, first=first)

    def _carry(self, tokens: int) -> None:
        if tokens < self._carried:
            self._kwargs = model_inputs.shorten_kwargs(self._kwargs, self._carried - tokens)
        elif tokens > self._carried:
            self._kwargs = model_inputs.extend_kwargs(self._module, self._kwargs, tokens - self._carried, self._output)
        self._carried = tokens

    def _remember(self, output: Any) -> None:
        self._output = copy.copy(output)
        self._output["logits"] = output.logits[:0].clone()
        if (cache := find_cache(output)) is not None:
            self._kwargs[name_of_cache(self._kwargs)] = cache

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


def _repeat_rows(value: Any, times: int, rows: int) -> Any:
    """A tensor with its rows repeated; what is no tensor, or has one row for all, as it is."""
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] != rows:  # noqa: PLR2004 - rows, positions
        return value
    return value.repeat_interleave(times, dim=0)
