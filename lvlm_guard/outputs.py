"""What generate returns: a tensor of token ids, or an object that holds one; and where in it the answers begin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.errors import ModelRefused


def holds_sequences(output: Any) -> bool:
    """Whether generate returned token ids."""
    return isinstance(output if isinstance(output, Tensor) else getattr(output, "sequences", None), Tensor)


def sequences(output: Any) -> Tensor:
    """Return the token ids `[rows, length]` of what generate returned.

    Raises:
        ModelRefused: There are none, as where a class decodes its answers into text by itself.
    """
    if not holds_sequences(output):
        raise ModelRefused(
            f"generate returned {type(output).__name__} instead of token ids, so nothing can be said about its tokens: pass the "
            "model inside, whose generate returns ids."
        )
    ids: Tensor = output if isinstance(output, Tensor) else output.sequences
    return ids


def measure_prompt(ids: Tensor, prompts: Iterable[Tensor]) -> int | None:
    """Return the length of the longest of `prompts` that all rows begin with; None where they begin with none of them.

    Args:
        ids: What generate returned `[rows, length]`.
        prompts: Prompts `[requests, length]`; rows of one request lie side by side.
    """
    return max((prompt.shape[1] for prompt in prompts if _begins(ids, prompt)), default=None)


def _begins(ids: Tensor, prompt: Tensor) -> bool:
    if not len(prompt) or len(ids) % len(prompt) or ids.shape[1] < prompt.shape[1]:
        return False
    rows = prompt.to(ids.device).repeat_interleave(len(ids) // len(prompt), dim=0)
    return torch.equal(ids[:, : prompt.shape[1]].to(rows), rows)
