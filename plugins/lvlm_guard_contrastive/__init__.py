"""Contrastive decoding: strategies that subtract, or add, the logits of a changed branch."""

from collections.abc import Callable

from lvlm_guard import hookimpl
from lvlm_guard_contrastive.avisc import AvisC as AvisC
from lvlm_guard_contrastive.gated import Gated as Gated
from lvlm_guard_contrastive.icd import ICD as ICD
from lvlm_guard_contrastive.m3id import M3ID as M3ID
from lvlm_guard_contrastive.ritual import RITUAL as RITUAL
from lvlm_guard_contrastive.sid import SID as SID
from lvlm_guard_contrastive.vcd import VCD as VCD
from lvlm_guard_contrastive.vdd import VDD as VDD

__all__ = ["ICD", "M3ID", "RITUAL", "SID", "VCD", "VDD", "AvisC", "Gated"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    for strategy in (VCD, M3ID, VDD, ICD, SID, AvisC, RITUAL, Gated):
        register(strategy)
