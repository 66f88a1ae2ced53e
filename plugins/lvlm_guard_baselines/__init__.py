"""Controls: what must be beaten before a gain counts as mitigation."""

from collections.abc import Callable

from lvlm_guard import hookimpl


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in ():
        register(strategy)
