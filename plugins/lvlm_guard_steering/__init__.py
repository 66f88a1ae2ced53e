"""Steering: strategies that move hidden states, by directions fitted offline or computed from the prompt."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lvlm_guard import hookimpl
from lvlm_guard_steering.memvr import MemVR as MemVR
from lvlm_guard_steering.nullu import Nullu as Nullu
from lvlm_guard_steering.vsv import VSV as VSV
from lvlm_guard_steering.vti import VTI as VTI

if TYPE_CHECKING:
    from lvlm_guard.fitting import Fitter

__all__ = ["VSV", "VTI", "MemVR", "Nullu"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (VTI, Nullu, VSV, MemVR):
        register(strategy)


@hookimpl
def register_fitters(register: "Callable[[Fitter], None]") -> None:
    """Offer fitters; they are imported here, since stacks do without them."""
    from lvlm_guard.fitting import Fitter  # noqa: PLC0415
    from lvlm_guard_steering.nullu_fitter import fit_nullu  # noqa: PLC0415
    from lvlm_guard_steering.vti_fitter import fit_vti  # noqa: PLC0415

    register(Fitter("nullu", fit_nullu))
    register(Fitter("vti", fit_vti))
