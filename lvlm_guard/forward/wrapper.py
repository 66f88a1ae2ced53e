"""The wrapper on the forward of the module that decodes: inert unless a decode is under way and the call belongs to it."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lvlm_guard.forward.decode import GuardedDecode

_decode: ContextVar[GuardedDecode | None] = ContextVar("lvlm_guard_decode", default=None)
_lock = threading.Lock()


@dataclass
class _Installation:
    users: int
    undo: Callable[[], None]


_installed: weakref.WeakKeyDictionary[nn.Module, _Installation] = weakref.WeakKeyDictionary()


def is_decoding() -> bool:
    """Whether a guarded decode is under way in this context."""
    return _decode.get() is not None


@contextmanager
def guarded(decode: GuardedDecode) -> Iterator[None]:
    """Install the wrapper on the module that decodes and let it know this decode; undo both on the way out."""
    assert isinstance(decode.module, nn.Module)
    release = _acquire(decode.module)
    token = _decode.set(decode)
    try:
        yield
    finally:
        _decode.reset(token)
        release()
        decode.close()


def _acquire(module: nn.Module) -> Callable[[], None]:
    """Install the wrapper, or share the one that is there; returns the undo."""
    with _lock:
        state = _installed.get(module)
        if state is None:
            state = _installed[module] = _Installation(0, _install(module))
        state.users += 1
    return functools.partial(_release, module, state)


def _release(module: nn.Module, state: _Installation) -> None:
    with _lock:
        state.users -= 1
        if state.users == 0:
            _installed.pop(module, None)
            state.undo()


def _install(module: nn.Module) -> Callable[[], None]:
    saved = vars(module).get("forward")
    original = saved if saved is not None else type(module).forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        plain = saved if saved is not None else functools.partial(original, self)
        decode = _decode.get()
        if decode is None or args or not decode.claims(self, kwargs):
            return plain(*args, **kwargs)
        return decode.step(plain, kwargs)

    function = _keep_out_of_graphs(functools.update_wrapper(forward, original, updated=()))
    function.__signature__ = _add_self(original, bound=saved is not None)
    module.forward = types.MethodType(function, module)
    return functools.partial(_uninstall, module, saved, module.forward)


def _keep_out_of_graphs(function: Any) -> Any:
    """Keep a guarded forward out of graphs that trace through it, without importing the compiler when nobody uses it."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def _uninstall(module: nn.Module, saved: Any, wrapper: Any) -> None:
    if vars(module).get("forward") is not wrapper:
        return  # somebody wrapped on top; that wrapper stays, and this one is inert
    if saved is None:
        del module.forward
    else:
        module.forward = saved


def _add_self(original: Callable[..., Any], *, bound: bool) -> inspect.Signature:
    signature = inspect.signature(original)
    if not bound:
        return signature
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[first, *signature.parameters.values()])
