"""What strategies and observers leave in the report of a call: plain values only."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lvlm_guard.errors import PluginRejected, quote

DEEPEST = 32
"""Levels of lists and mappings in one result."""


class CallResults(UserDict[str, Any]):
    """Results by name, kept as what JSON can say; a tensor becomes a list, which waits for its device.

    Raises:
        PluginRejected: A name that is no text, or a value that JSON cannot say.
    """

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str):
            raise PluginRejected(f"gen.results is read by name, got {quote(name)}: use the name of the strategy.")
        super().__setitem__(name, to_plain(value, f"gen.results[{name!r}]"))

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return what is kept under a name, the plain copy of `default` where nothing was, so that it can be added to."""
        super().setdefault(name, default)
        return self[name]

    def to_dict(self) -> dict[str, Any]:
        """Return a copy, checked again: lists and mappings may have been added to."""
        return {name: to_plain(value, f"gen.results[{name!r}]") for name, value in self.items()}


def to_plain(value: Any, place: str, depth: int = 0) -> Any:
    """Return a copy of a value made of None, bool, int, float, str, lists and dicts; `place` names it in errors.

    Raises:
        PluginRejected: Anything else is in it, a number that is not finite, or more than 32 levels.
    """
    if depth > DEEPEST:
        raise PluginRejected(f"{place} is nested deeper than {DEEPEST} levels, or holds itself.")
    if isinstance(value, Tensor):
        value = value.detach().tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return _check_finite(value, place)
    if isinstance(value, (list, tuple)):
        return [to_plain(entry, f"{place}[{index}]", depth + 1) for index, entry in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: to_plain(entry, f"{place}[{name!r}]", depth + 1) for name, entry in value.items()}
    raise PluginRejected(
        f"{place} cannot be written as JSON: {quote(value)}. Leave numbers, text, lists, mappings by text, or tensors."
    )


def _check_finite(value: float, place: str) -> float:
    if not math.isfinite(value):
        raise PluginRejected(f"{place} is {value}, which JSON cannot say: leave None, or text, in its place.")
    return value
