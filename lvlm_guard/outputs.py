"""What generate returns: a tensor of token ids, or an object that holds one."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def sequences(output: Any) -> Tensor:
    """Return the token ids `[rows, length]` of what generate returned."""
    ids: Tensor = output if isinstance(output, Tensor) else output.sequences
    return ids
