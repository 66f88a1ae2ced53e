"""Functions of the user's: imported by path if that was allowed, called with a time limit, named in errors.

This is the only place where a text from a file, a command line or a caller becomes an import. A name passes if an installed
distribution offers the function as an entry point, or if the caller, the command line or the environment allows exactly this one.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import entry_points
from itertools import islice
from typing import Any

import torch

from lvlm_guard.errors import InputError, describe_error, quote

GROUP = "lvlm_guard.callables"
"""Entry points of functions that stack files may name."""
VARIABLE = "LVLM_GUARD_ALLOW"
"""Environment variable that allows further ones: `package.module:function`, separated by commas."""
MOST_ITEMS = 10_000
"""Items that a generator function may yield."""
_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class AllowedName(str):
    """The import path of a function that may be imported; `allow_name` makes it."""

    __slots__ = ()


def allow_name(name: str, allowed: Collection[str] = ()) -> AllowedName:
    """Return an import path as one that may be imported.

    Args:
        name: `package.module:function`.
        allowed: Import paths that the caller allows beside the installed and the environment's.

    Raises:
        InputError: It is no import path, or nobody allowed it; the message says how to allow exactly this one.
    """
    if isinstance(name, AllowedName):
        return name
    if not _IMPORT_PATH.fullmatch(name):
        raise InputError(f"{quote(name)} is no import path of a function. Name it package.module:function.")
    if name not in {*allowed, *_allowed_by_environment(), *(point.value for point in entry_points(group=GROUP))}:
        raise InputError(
            f"{quote(name)} may not be imported, because a stack file that names a function runs code. If you trust it, pass "
            f"the function itself, or allow this name: allow=[{name!r}] of Stack.of and Stack.read, --allow {name} on the "
            f"command line, or {VARIABLE}={name} in the environment."
        )
    return AllowedName(name)


def _allowed_by_environment() -> set[str]:
    return {name.strip() for name in os.environ.get(VARIABLE, "").split(",")}


def resolve(function: str | Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return the function behind an import path "package.module:function", or a callable as it is.

    Raises:
        InputError: There is no such function, or it may not be imported.
    """
    if callable(function):
        return function
    if not isinstance(function, str):
        raise InputError(f"The {what} is a function or its import path, got {quote(function)}.")
    module, _, name = allow_name(function).partition(":")
    try:
        resolved = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user's may raise anything while it is imported
        raise InputError(
            f"The {what} {function!r} cannot be imported: {error}. Name it package.module:function."
        ) from error
    if not callable(resolved):
        raise InputError(f"The {what} {function!r} is not a function but {resolved!r}.")
    return resolved


def call_user_function(function: str | Callable[..., Any], *arguments: Any, what: str, timeout: float) -> Any:
    """Call a function, and return its result if it answers in time; what a generator yields becomes a list.

    Raises:
        InputError: It raised, yielded more than 10,000 items, or did not return within `timeout` seconds; its thread dies with the process then.
    """
    ready, name = resolve(function, what), name_of(function)
    outcome: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            with torch.no_grad():
                outcome.append((_exhaust(ready(*arguments)), None))
        except BaseException as error:  # noqa: BLE001 - every exception is raised again in the user's thread
            outcome.append((None, error))

    thread = threading.Thread(target=work, name=f"lvlm_guard {what}", daemon=True)
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise InputError(f"The {what} {name} did not answer within {timeout:g} s. Raise its timeout, or correct it.")
    value, error = outcome[0]
    if error is not None:
        raise InputError(f"The {what} {name} raised {describe_error(error)}.") from error
    return value


def _exhaust(value: Any) -> Any:
    """Return the items of an iterator as a list, other values as they are."""
    if not isinstance(value, Iterator):
        return value
    items = list(islice(value, MOST_ITEMS + 1))
    if len(items) > MOST_ITEMS:
        raise InputError(f"it yields more than {MOST_ITEMS} items")
    return items


def name_of(function: str | Callable[..., Any]) -> str:
    """Return a readable name of a callable."""
    return repr(function) if isinstance(function, str) else getattr(function, "__qualname__", repr(function))
