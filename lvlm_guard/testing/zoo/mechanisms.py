"""One strategy for each mechanism, with an effect that is known exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lvlm_guard.strategy.branches import Branch, Insert
from lvlm_guard.strategy.edits import AttentionEdit, HiddenEdit, Readout
from lvlm_guard.strategy.hookspecs import hookimpl
from lvlm_guard.strategy.terms import Contrast, Mix, Term
from lvlm_guard.testing.zoo.prompts import EXTRA, disturbed, striped

WEIGHT = 1.5
LENS_WEIGHT = 0.5
FAVOUR = 3.0
EDITED = (1, 3)
"""Decoder layers that are edited, the second one excluded."""
READ = (1, 2)
"""Layer outputs that are read, counted from 1."""
BRANCHES = {
    "noise": Branch("noise", pixels=disturbed),
    "replacement": Branch("replacement", pixels=striped),
    "removal": Branch("removal", image="removed"),
    "longer": Branch("longer", tokens=(Insert(EXTRA, "after_image"),)),
}


@dataclass(frozen=True)
class AgainstBranch:
    """Contrast with one branch."""

    name: ClassVar[str] = "against-branch"
    kind: str

    @hookimpl
    def branches(self, gen: Any) -> Iterable[Branch]:
        """Return the branch."""
        yield BRANCHES[self.kind]

    @hookimpl
    def terms(self, gen: Any) -> Iterable[Term]:
        """Return the contrast."""
        yield Contrast(self.kind, WEIGHT)


def contrast(main: Tensor, branch: Tensor) -> Tensor:
    """Return what `AgainstBranch` makes of logits `[..., vocab]`."""
    return (1 + WEIGHT) * main - WEIGHT * branch


@dataclass(frozen=True)
class InsideModel:
    """Edits inside the layers."""

    name: ClassVar[str] = "inside-model"
    attends: tuple[AttentionEdit, ...] = ()
    hides: tuple[HiddenEdit, ...] = ()

    @hookimpl
    def attention(self, gen: Any) -> Iterable[AttentionEdit]:
        """Return the edits of attention."""
        return self.attends

    @hookimpl
    def hidden(self, gen: Any) -> Iterable[HiddenEdit]:
        """Return the edits of hidden states."""
        return self.hides


@dataclass(frozen=True)
class EarlyLayers:
    """Add what early layers say."""

    name: ClassVar[str] = "early-layers"
    layers: tuple[int, ...] = READ

    @hookimpl
    def readouts(self, gen: Any) -> Iterable[Readout]:
        """Return the layers to read."""
        yield Readout(self.layers)

    @hookimpl
    def terms(self, gen: Any) -> Iterable[Term]:
        """Return their logits as terms."""
        yield from (Mix(layer, LENS_WEIGHT) for layer in gen.readouts(Readout(self.layers)))


def reversed_states(hidden: Tensor, _: Any = None) -> Tensor:
    """Return hidden states `[..., hidden]` turned round and made larger."""
    return 2 * hidden.flip(-1) + hidden


def unchanged(scores: Tensor, _: Any) -> Tensor:
    """Return scores as they are."""
    return scores


NEUTRAL = InsideModel(attends=(AttentionEdit(EDITED, unchanged, keys="image", queries="all"),))
FAVOURED = InsideModel(attends=(AttentionEdit(EDITED, "add", FAVOUR, keys="image", queries="all"),))
SCALED = InsideModel(attends=(AttentionEdit(EDITED, "scale", FAVOUR, keys="image", queries="all"),))
REVERSED = InsideModel(hides=(HiddenEdit("residual", reversed_states, layers=EDITED),))
REVERSED_TOWER = InsideModel(hides=(HiddenEdit("residual", reversed_states, tower="vision"),))
