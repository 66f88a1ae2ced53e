"""Layer contrast: strategies that use what inner layers would say."""

from collections.abc import Callable

from lvlm_guard import hookimpl


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in ():
        register(strategy)
