"""Steering: strategies that move hidden states, by directions fitted offline or found in the prompt."""

from collections.abc import Callable

from lvlm_guard import hookimpl
from lvlm_guard_steering.memvr import MemVR as MemVR
from lvlm_guard_steering.nullu import Nullu as Nullu
from lvlm_guard_steering.vsv import VSV as VSV
from lvlm_guard_steering.vti import VTI as VTI

__all__ = ["VSV", "VTI", "MemVR", "Nullu"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (VTI, Nullu, VSV, MemVR):
        register(strategy)
