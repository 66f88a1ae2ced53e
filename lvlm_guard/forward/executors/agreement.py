"""Processes that run every forward together choose one executor together, for each of them runs other forwards."""

from __future__ import annotations

import torch
from torch import distributed


def holds_anywhere(*facts: bool, device: torch.device) -> tuple[bool, ...]:
    """Return which of these facts hold in any process; all of them have to ask at the same point."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return facts
    flags = torch.tensor(facts, dtype=torch.int32, device=device)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in flags.tolist())
