"""Attention re-weighting: strategies that turn attention towards the image."""

from collections.abc import Callable

from lvlm_guard import hookimpl
from lvlm_guard_reweighting.adhh import ADHH as ADHH
from lvlm_guard_reweighting.pai import PAI as PAI
from lvlm_guard_reweighting.vaf import VAF as VAF

__all__ = ["ADHH", "PAI", "VAF"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (PAI, VAF, ADHH):
        register(strategy)
