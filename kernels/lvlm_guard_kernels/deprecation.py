"""Former ways to call the kernels, which still work and issue a `DeprecationWarning`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, cast

from lvlm_guard_kernels.combination import Combination

Function = TypeVar("Function", bound=Callable[..., Any])

PARTS = tuple(field.name for field in fields(Combination))


def accept_parts(build: Callable[..., Combination]) -> Callable[[Function], Function]:
    """Let a function of a `Combination` also take its parts: main, sources and weights by position, others by name.

    Args:
        build: Makes the combination of the parts.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **settings: Any) -> Any:
            if "combination" in settings or (args and isinstance(args[0], Combination)):
                return function(*args, **settings)
            name = function.__name__
            warn(f"{name}(main, sources, weights, ...) is deprecated. Call {name}(Combination(...), ...) instead.")
            parts = {part: settings.pop(part) for part in PARTS if part in settings}
            return function(build(*args, **parts), **settings)

        return cast("Function", call)

    return decorate


def accept_keywords(**renamed: str) -> Callable[[Function], Function]:
    """Let a function also take arguments by their former names: `accept_keywords(old="new")`."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **settings: Any) -> Any:
            for old, new in renamed.items():
                if old in settings:
                    warn(f"{function.__name__}({old}=...) is deprecated. Use {new}= instead.")
                    settings[new] = settings.pop(old)
            return function(*args, **settings)

        return cast("Function", call)

    return decorate


def warn(message: str) -> None:
    """Issue a `DeprecationWarning` at the line that reached the function which calls this one."""
    warnings.warn(message, DeprecationWarning, stacklevel=3)
