"""The wrapper on the decode module's forward: inert unless a scope is open and the call is that scope's own."""

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

from lvlm_guard.forward.scope import Scope

_scope: ContextVar[Scope | None] = ContextVar("lvlm_guard_scope", default=None)
_lock = threading.Lock()


@dataclass
class _Installed:
    users: int
    undo: Callable[[], None]


_installed: weakref.WeakKeyDictionary[nn.Module, _Installed] = weakref.WeakKeyDictionary()


def inside_scope() -> bool:
    """Whether a guarded decode is under way in this context."""
    return _scope.get() is not None


@contextmanager
def guarded(scope: Scope) -> Iterator[None]:
    """Install the wrapper on the scope's module and open the scope; undo both on the way out."""
    release = _acquire(scope.module)
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)
        release()
        scope.close()


def _acquire(module: nn.Module) -> Callable[[], None]:
    """Install the wrapper, or share the one that is there; returns the undo."""
    with _lock:
        state = _installed.get(module)
        if state is None:
            state = _installed[module] = _Installed(0, _install(module))
        state.users += 1
    return functools.partial(_release, module, state)


def _release(module: nn.Module, state: _Installed) -> None:
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
        scope = _scope.get()
        if scope is None or args or not scope.claims(self, kwargs):
            return plain(*args, **kwargs)
        return scope.run(plain, kwargs)

    function = _outside_graphs(functools.update_wrapper(forward, original, updated=()))
    function.__signature__ = _with_self(original, bound=saved is not None)
    module.forward = types.MethodType(function, module)
    return functools.partial(_uninstall, module, saved, module.forward)


def _outside_graphs(function: Any) -> Any:
    """Keep a guarded forward out of graphs that trace through it, without importing the compiler when nobody uses it."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def _uninstall(module: nn.Module, saved: Any, ours: Any) -> None:
    if vars(module).get("forward") is not ours:
        return  # somebody wrapped on top of ours; theirs stays, and ours is inert
    if saved is None:
        del module.forward
    else:
        module.forward = saved


def _with_self(original: Callable[..., Any], *, bound: bool) -> inspect.Signature:
    signature = inspect.signature(original)
    if not bound:
        return signature
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[first, *signature.parameters.values()])
