"""Compiled models: run uncompiled for as long as something is hooked into their layers."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lvlm_guard import anatomy
from lvlm_guard.forward.installations import LOCK
from lvlm_guard.protocols import Model


class StanceUser:
    """One block that runs compiled modules uncompiled."""


@dataclass
class _Switch:
    users: weakref.WeakSet[StanceUser] = field(default_factory=weakref.WeakSet)
    stance: Any = None


_switch = _Switch()


def unwrap_compiled(model: Any) -> Any:
    """Return the model inside what `torch.compile(model)` returns: its generate runs there, uncompiled."""
    return getattr(model, "_orig_mod", model)


def is_compiled(model: Model) -> bool:
    """Whether a model or a part of it was given to `torch.compile`."""
    return "torch._dynamo" in sys.modules and any(_is_compiled(part) for part in anatomy.list_parts(model))


def _is_compiled(part: nn.Module) -> bool:
    forward = vars(part).get("forward")
    replaced = (
        forward is not None
        and hasattr(forward, "_torchdynamo_orig_callable")
        and not getattr(forward, "_torchdynamo_disable", False)
    )
    return replaced or getattr(part, "_compiled_call_impl", None) is not None


@contextmanager
def run_uncompiled() -> Iterator[None]:
    """Run every compiled module uncompiled: a graph knows nothing of hooks that came after it.

    The switch is torch's own and holds for the process. Blocks that overlap, of other threads too, share it, and the last one
    to end turns it back.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    user = StanceUser()
    try:
        try:
            _enter(user)
            yield
        finally:
            _leave(user)
    finally:  # an interrupt may have cut the first attempt short
        _leave(user)


def _enter(user: StanceUser) -> None:
    with LOCK:
        _switch.users.add(user)
        if _switch.stance is None:
            _switch.stance = torch.compiler.set_stance("force_eager")


def _leave(user: StanceUser) -> None:
    with LOCK:
        _switch.users.discard(user)
        if not _switch.users and _switch.stance is not None:
            stance, _switch.stance = _switch.stance, None
            stance.__exit__(None, None, None)
