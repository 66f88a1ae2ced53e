"""Contrastive decoding: strategies that subtract what a disturbed branch says."""

from collections.abc import Callable

from lvlm_guard import hookimpl
from lvlm_guard_contrastive.icd import ICD as ICD
from lvlm_guard_contrastive.m3id import M3ID as M3ID
from lvlm_guard_contrastive.vcd import VCD as VCD
from lvlm_guard_contrastive.vdd import VDD as VDD

__all__ = ["ICD", "M3ID", "VCD", "VDD"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (VCD, M3ID, VDD, ICD):
        register(strategy)
