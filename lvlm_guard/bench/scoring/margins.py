"""How sure a yes or no is: the logits of both at the first token, as generate chooses from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.bench.items import Item

YES = ("Yes", "yes", "YES", " Yes", " yes", " YES")
NO = ("No", "no", "NO", " No", " no", " NO")
DIGITS = 5
"""Decimals of a margin as it is kept."""


@dataclass(frozen=True)
class Tokens:
    """Ids of the tokens that begin a yes and of those that begin a no; none begins both."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> Tokens | None:
        """Read them off a tokenizer; None where a first token does not distinguish the two."""
        yes, no = (_first_tokens(tokenizer, words) for words in (YES, NO))
        if not yes - no or not no - yes:
            return None
        return cls(tuple(sorted(yes - no)), tuple(sorted(no - yes)))


def _first_tokens(tokenizer: Any, words: Sequence[str]) -> set[int]:
    """Return the ids that begin any of the words; the unknown token begins none."""
    starts = [tokenizer(word, add_special_tokens=False)["input_ids"][:1] for word in words]
    return {int(token) for ids in starts for token in ids} - {getattr(tokenizer, "unk_token_id", None)}


class MarginRecorder:
    """A logits processor that notes the margin of every row at the first token, and changes nothing.

    The margin is log p(any yes) minus log p(any no), in natural units: the difference of two logits where each answer has
    one token.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._margins: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 - generate passes both
        """Note the first scores `[rows, vocab]`, and return them."""
        if self._margins is None:
            yes, no = (scores[:, list(ids)].float().logsumexp(-1) for ids in (self._tokens.yes, self._tokens.no))
            self._margins = yes - no
        return scores

    def margins(self, rows: int) -> list[float | None]:
        """Return a margin per row; None where there is none, or none that is finite."""
        if self._margins is None or len(self._margins) != rows:
            return [None] * rows
        return [round(margin, DIGITS) if math.isfinite(margin) else None for margin in self._margins.tolist()]


def says_yes(truth: Any) -> bool | None:
    """Return whether an item's truth is yes (True) or no (False); None where it is neither."""
    if isinstance(truth, bool):
        return truth
    return {"yes": True, "no": False}.get(truth.strip().lower()) if isinstance(truth, str) else None


def asks_yes_no(items: Sequence[Item]) -> bool:
    """Return whether any of them is answered by yes or no."""
    return any(says_yes(item.truth) is not None for item in items)


def new_tokens(generated: Tensor, ends: Sequence[int], padding: int | None) -> list[int]:
    """Count the tokens of each row `[rows, tokens]` up to its first end token, that one included.

    Padding does not count.
    """
    ended = torch.isin(generated, torch.tensor(list(ends), device=generated.device).long())
    before = ended.long().cumsum(1) - ended.long() == 0
    if padding is not None and padding not in ends:
        before &= generated != padding
    return [int(count) for count in before.sum(1)]
