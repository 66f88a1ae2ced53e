"""Steering: strategies that move hidden states, by directions fitted offline or found in the prompt."""

from collections.abc import Callable

from lvlm_guard import hookimpl


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in ():
        register(strategy)
