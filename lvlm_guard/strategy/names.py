"""The name by which a strategy goes in stacks."""

from __future__ import annotations

import dataclasses
from typing import Any

from lvlm_guard.errors import quote


def strategy_name(strategy: type | object) -> str:
    """Name of a strategy class or instance: its `name`, else the lower-cased class name."""
    owner = strategy if isinstance(strategy, type) else type(strategy)
    return str(getattr(strategy, "name", owner.__name__.lower()))


def describe_strategy(strategy: Any) -> str:
    """Return the name of a strategy, with the parameters that are not at their defaults."""
    changed = [
        f"{parameter.name}={quote(getattr(strategy, parameter.name))}"
        for parameter in dataclasses.fields(strategy)
        if parameter.default_factory is dataclasses.MISSING and getattr(strategy, parameter.name) != parameter.default
    ]
    return strategy_name(strategy) + (f"({', '.join(changed)})" if changed else "")
