"""Attention masks over a static cache, which open by one position with every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

AXES = len(("rows", "heads", "queries", "keys"))


class OpeningMask:
    """Makes the mask of each step of a decode, by the model's own code as long as nothing else is proven.

    Where its second mask is its first with one more position open, the next ones are made so, in place.
    """

    def __init__(self) -> None:
        self._mask: Any = None
        self._past = -1
        self._is_proven: bool | None = None

    def find(self, make: Callable[[], Any], past: int, new: int) -> Any:
        """Return the mask of a step.

        Args:
            make: Lets the model make it.
            past: Positions already in the cache.
            new: Positions that are fed.
        """
        follows = new == 1 and past == self._past + 1 and _is_of_one_query(self._mask)
        self._past = past
        if follows and self._is_proven:
            _open(self._mask, past)
            return self._mask
        next_mask = make()
        if follows and self._is_proven is None:
            _open(self._mask, past)
            self._is_proven = _agree(self._mask, next_mask)
        self._mask = _copy(next_mask)
        return next_mask


def _copy(mask: Any) -> Any:
    """Return a mask with memory of its own, which the rows of what the model made may share."""
    return mask.clone() if isinstance(mask, Tensor) else mask


def _is_of_one_query(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == AXES and mask.shape[-2] == 1


def _open(mask: Tensor, position: int) -> None:
    """Let every row see a position as it sees the one before, which is its own last token's."""
    mask[..., position] = mask[..., position - 1]


def _agree(mask: Tensor, other_mask: Any) -> bool:
    return isinstance(other_mask, Tensor) and other_mask.dtype == mask.dtype and torch.equal(other_mask, mask)
