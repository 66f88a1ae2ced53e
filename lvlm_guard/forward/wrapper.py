"""The wrapper on the forward of the module that decodes: inert unless a decode is under way and the call belongs to it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

import torch
from torch import nn

from lvlm_guard.errors import ModeRefused
from lvlm_guard.forward.decode import GuardedDecode
from lvlm_guard.forward.installations import StandIn, leave, stand_in

Returned = TypeVar("Returned")
_MISSING = object()
_decode: ContextVar[GuardedDecode | None] = ContextVar("lvlm_guard_decode", default=None)
_stepping: ContextVar[GuardedDecode | None] = ContextVar("lvlm_guard_stepping", default=None)


def run_apart(function: Callable[..., Returned], *args: Any) -> Returned:
    """Call a function so that nothing of a guarded call is left in this context, wherever an exception cuts it.

    What the function set in context variables is set here too, once it has returned: users' callbacks run inside it.
    """
    context = copy_context()
    output = context.run(function, *args)
    for variable, value in context.items():
        if variable.get(_MISSING) is not value:
            variable.set(value)
    return output


def run_guarded(decode: GuardedDecode, run: Callable[[], Returned]) -> Returned:
    """Run `run` while forwards of the module that decodes may belong to this decode; all of it is undone afterwards."""
    previous = _decode.get()
    try:
        try:
            _decode.set(decode)
            stand_in(decode.module, "forward", _choose_forward(), decode)
            return run()
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(vars(decode.module).get("forward"), StandIn):
                raise
            raise ModeRefused(
                f"The forward of {type(decode.module).__name__} was replaced while the call ran, and what replaced it failed: "
                f"{error}. Change the model between calls."
            ) from error
        finally:
            _end(decode, previous)
    finally:  # an interrupt may have cut the first attempt short
        _end(decode, previous)


def _end(decode: GuardedDecode, previous: GuardedDecode | None) -> None:
    _decode.set(previous)
    leave(decode.module, "forward", decode)
    decode.close()


def _choose_forward() -> Callable[..., Any]:
    """Keep a guarded forward out of graphs that trace through it, without importing the compiler when nobody uses it."""
    return torch.compiler.disable(_forward) if "torch._dynamo" in sys.modules else _forward


def _forward(wrapper: StandIn, *args: Any, **kwargs: Any) -> Any:
    """Answer a forward of the module; a wrapper that somebody wrapped again only passes on what the outer one runs."""
    decode, module = _decode.get(), wrapper.owner
    assert isinstance(module, nn.Module)
    if decode is None or args or _stepping.get() is decode or not decode.claims(module, kwargs):
        return wrapper.original(*args, **kwargs)
    token = _stepping.set(decode)
    try:
        return decode.step(wrapper.original, kwargs)
    finally:
        _stepping.reset(token)
