"""Attention re-weighting: strategies that turn attention towards the image."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lvlm_guard import hookimpl
from lvlm_guard_reweighting.adhh import ADHH as ADHH
from lvlm_guard_reweighting.pai import PAI as PAI
from lvlm_guard_reweighting.vaf import VAF as VAF

if TYPE_CHECKING:
    from lvlm_guard.fitting import Fitter

__all__ = ["ADHH", "PAI", "VAF"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (PAI, VAF, ADHH):
        register(strategy)


@hookimpl
def register_fitters(register: "Callable[[Fitter], None]") -> None:
    """Offer fitters; they are imported here, since stacks do without them."""
    from lvlm_guard.fitting import Fitter  # noqa: PLC0415
    from lvlm_guard_reweighting.adhh_fitter import fit_adhh  # noqa: PLC0415

    register(Fitter("adhh", fit_adhh))
