"""Augmentation and revision: strategies that change the inputs, or the answer."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lvlm_guard import hookimpl
from lvlm_guard_augmentation.doubt import Doubt as Doubt
from lvlm_guard_augmentation.evidence import Evidence as Evidence
from lvlm_guard_augmentation.revise import Revise as Revise
from lvlm_guard_augmentation.transform import Transform as Transform
from lvlm_guard_augmentation.views import PooledViews as PooledViews

if TYPE_CHECKING:
    from lvlm_guard.fitting import Fitter

__all__ = ["Doubt", "Evidence", "PooledViews", "Revise", "Transform"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (Doubt, Evidence, Revise, Transform, PooledViews):
        register(strategy)


@hookimpl
def register_fitters(register: "Callable[[Fitter], None]") -> None:
    """Offer fitters; they are imported here, since stacks do without them."""
    from lvlm_guard.fitting import Fitter  # noqa: PLC0415
    from lvlm_guard_augmentation.revise_fitter import fit_revise  # noqa: PLC0415

    register(Fitter("revise", fit_revise, data="pictures"))
