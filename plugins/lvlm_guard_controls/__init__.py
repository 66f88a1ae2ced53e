"""Controls: what must be beaten before a gain counts as mitigation."""

from collections.abc import Callable

from lvlm_guard import hookimpl
from lvlm_guard_controls.contrarian import Contrarian as Contrarian
from lvlm_guard_controls.mask_only import MaskOnly as MaskOnly
from lvlm_guard_controls.olm import OLM as OLM
from lvlm_guard_controls.pba import PBA as PBA
from lvlm_guard_controls.temperature import Temperature as Temperature
from lvlm_guard_controls.yes_bias import YesBias as YesBias

__all__ = ["OLM", "PBA", "Contrarian", "MaskOnly", "Temperature", "YesBias"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (MaskOnly, Temperature, YesBias, OLM, PBA, Contrarian):
        register(strategy)
