"""Search: strategies that own the decoding loop."""

from collections.abc import Callable

from lvlm_guard import hookimpl
from lvlm_guard_search.opera import OPERA as OPERA
from lvlm_guard_search.rank import Rank as Rank

__all__ = ["OPERA", "Rank"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (OPERA, Rank):
        register(strategy)
