"""Functions of the user's: imported by path, called with a time limit, named in errors."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

import torch

from lvlm_guard.errors import InputError


def resolve(function: str | Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return the function behind an import path "package.module:function", or a callable as it is.

    Raises:
        InputError: There is no such function.
    """
    if callable(function):
        return function
    module, _, name = function.partition(":")
    try:
        resolved = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"The {what} {function!r} cannot be imported: {error}. Name it package.module:function."
        ) from error
    if not callable(resolved):
        raise InputError(f"The {what} {function!r} is not a function but {resolved!r}.")
    return resolved


def call_user_function(function: str | Callable[..., Any], *arguments: Any, what: str, timeout: float) -> Any:
    """Call a function, and return its result if it answers in time.

    Raises:
        InputError: It raised, or did not return within `timeout` seconds; its thread dies with the process then.
    """
    ready, name = resolve(function, what), name_of(function)
    outcome: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            with torch.no_grad():
                outcome.append((ready(*arguments), None))
        except BaseException as error:  # noqa: BLE001 - every exception is raised again in the user's thread
            outcome.append((None, error))

    thread = threading.Thread(target=work, name=f"lvlm_guard {what}", daemon=True)
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise InputError(f"The {what} {name} did not answer within {timeout:g} s. Raise its timeout, or correct it.")
    value, error = outcome[0]
    if error is not None:
        raise InputError(f"The {what} {name} raised {type(error).__name__}: {error}.") from error
    return value


def name_of(function: str | Callable[..., Any]) -> str:
    """Return a readable name of a callable."""
    return repr(function) if isinstance(function, str) else getattr(function, "__qualname__", repr(function))
