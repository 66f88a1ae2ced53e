"""Prompts that a call ran, kept as its prefill left them, so that others can go on from how they begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.forward import caches
from lvlm_guard.forward.caches.copying import copy_layers, cut_row, find_cutting_obstacle
from lvlm_guard.forward.preparation import PreparedDecode
from lvlm_guard.protocols import Cache


@dataclass(frozen=True, eq=False)
class KeptPrompt:
    """The prompts of main or of a branch, and the cache that their prefill left.

    Args:
        ids: Prompts `[rows, length]`.
        mask: Their attention mask `[rows, length]`, or None where all of it is attended to.
        cache: Keys and values of every row; never written to.
        across: Layers whose keys are those of pictures beside the prompt.
    """

    ids: Tensor
    mask: Tensor | None
    cache: Cache
    across: frozenset[int] = frozenset()

    def cut(self, row: int, beginning: Sequence[int]) -> Cache | str:
        """Return the cache of how the prompt of a row begins, or why there is none."""
        ids, length = self.ids[row], len(beginning)
        mask = ids.new_ones(ids.shape).bool() if self.mask is None else self.mask[row].bool().to(ids.device)
        places = mask.nonzero().flatten()
        if len(places) <= length or ids[places[:length]].tolist() != list(beginning):
            return "the prompt of the answer begins otherwise"
        start = int(places[0])
        if int(places[length - 1]) != start + length - 1:
            return "the prompt of the answer has gaps"
        return cut_row(self.cache, row, start, length, self.across)


def keep_prompt(prepared: PreparedDecode, cache: Cache | None, tokens: int) -> KeptPrompt | str:
    """Return a prompt whose prefill has just run, with `tokens` further ones, or why nothing can go on from it."""
    across = anatomy.layers_across(prepared.module)
    obstacle = find_cutting_obstacle(cache, across)
    is_whole = caches.length_of(cache) == prepared.input_ids.shape[1] + tokens
    if obstacle is None and (not is_whole or prepared.length != prepared.input_ids.shape[1]):
        obstacle = "its cache holds other positions than the prompt has tokens"
    if obstacle is not None or cache is None:
        return f"the prompt of the answer cannot be cut: {obstacle}"
    return KeptPrompt(prepared.input_ids, prepared.prompt_mask, copy_layers(cache), across)
