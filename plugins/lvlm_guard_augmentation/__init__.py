"""Augmentation and revision: strategies that change the inputs, or the answer."""

from collections.abc import Callable

from lvlm_guard import hookimpl
from lvlm_guard_augmentation.evidence import Evidence as Evidence
from lvlm_guard_augmentation.revise import Revise as Revise
from lvlm_guard_augmentation.transform import Transform as Transform

__all__ = ["Evidence", "Revise", "Transform"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (Evidence, Revise, Transform):
        register(strategy)
