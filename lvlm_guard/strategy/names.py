"""The name by which a strategy goes in stacks."""

from __future__ import annotations


def strategy_name(strategy: type | object) -> str:
    """Name of a strategy class or instance: its `name`, else the lower-cased class name."""
    owner = strategy if isinstance(strategy, type) else type(strategy)
    return str(getattr(strategy, "name", owner.__name__.lower()))
