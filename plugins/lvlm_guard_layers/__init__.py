"""Layer contrast: strategies that use the logits of inner layers."""

from collections.abc import Callable

from lvlm_guard import hookimpl
from lvlm_guard_layers.deco import DeCo as DeCo
from lvlm_guard_layers.dola import DoLa as DoLa
from lvlm_guard_layers.sla import SLA as SLA

__all__ = ["SLA", "DeCo", "DoLa"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (DoLa, DeCo, SLA):
        register(strategy)
