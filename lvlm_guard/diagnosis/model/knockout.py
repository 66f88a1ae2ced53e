"""Knock-out: whether true answers become likelier when a head or a feed-forward block is silenced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lvlm_guard import AttentionEdit, HiddenEdit, View, hookimpl
from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.items import KnownItem, encode
from lvlm_guard.diagnosis.model.reading import answer, find_lens
from lvlm_guard.diagnosis.model.recording import record
from lvlm_guard.diagnosis.model.structure import Structure
from lvlm_guard.fitting import Track

ITEMS = 16
"""Items on which components are silenced, captioned ones first."""
GAIN = 0.02
"""Gain in mean log-probability of true answers, in nats, below which a component is not looked at further."""
SHORTLIST = 128
"""How many components are silenced at most."""
Way = Literal["zeroed", "averaged"]


@dataclass(frozen=True)
class KnockoutGain:
    """What silencing one component does.

    Args:
        component: The component.
        nats: Gain in mean log-probability of true answers, of the better of the two ways.
        way: Whether it was set to zero, or its mean over positions was taken off.
    """

    component: Component
    nats: float
    way: Way


@dataclass(frozen=True)
class Silence:
    """Silences one component, a head or what a feed-forward or attention block adds.

    Args:
        component: The component.
        way: `zeroed`, or `averaged`: what it returns loses its mean over positions.
    """

    name: ClassVar[str] = "silence"

    component: Any
    way: Way

    @property
    def _layers(self) -> tuple[int, int]:
        layer = int(self.component.layer)
        return layer, layer + 1

    @hookimpl
    def attention(self) -> Iterable[AttentionEdit]:
        """Silence a head."""
        if self.component.name == "head":
            heads = (self.component.head,)
            yield AttentionEdit(
                self._layers, self._silence_heads, keys="all", queries="all", heads=heads, stage="outputs"
            )

    @hookimpl
    def hidden(self) -> Iterable[HiddenEdit]:
        """Silence a block."""
        if self.component.name != "head":
            yield HiddenEdit(self.component.name, self._silence_block, self._layers)

    def _silence_heads(self, outputs: Tensor, view: View) -> Tensor:
        return self._silence(outputs, view.positions[:, None, :, None], 2)

    def _silence_block(self, hidden: Tensor, view: View) -> Tensor:
        return self._silence(hidden, view.valid[..., None], 1)

    def _silence(self, values: Tensor, counts: Tensor, axis: int) -> Tensor:
        if self.way == "zeroed":
            return torch.zeros_like(values)
        weights = counts.to(values)
        total = (values * weights).sum((0, axis), keepdim=True)
        return values - total / weights.sum((0, axis), keepdim=True).clamp_min(1)


def choose_candidates(structure: Structure, scores: dict[Component, float] | None = None) -> list[Component]:
    """Return the components that can be silenced; on large models a shortlist, the farthest from the profile first."""
    heads = [Component("head", layer, head) for layer, count in structure.heads.items() for head in range(count)]
    candidates = heads + [Component("mlp", layer) for layer in structure.sums]
    if scores is not None:
        candidates.sort(key=lambda component: -scores.get(component, 0.0))
    return sorted(candidates[:SHORTLIST], key=lambda component: component.order)


def choose_items(items: Sequence[KnownItem]) -> list[KnownItem]:
    """Return the items on which components are silenced: the first captioned ones, then the first of the others."""
    return sorted(items, key=lambda item: not item.is_caption)[:ITEMS]


@torch.no_grad()
def measure_gains(
    model: Any,
    processor: Any,
    structure: Structure,
    items: Sequence[KnownItem],
    candidates: Sequence[Component],
    track: Track = iter,
) -> list[KnockoutGain]:
    """Silence components one after the other; what helps most comes first. Empty where answers cannot be read."""
    encoded = encode(model, processor, items)
    recording = record(model, structure, encoded)
    assert recording.last is not None
    assert recording.logits is not None
    lens, _ = find_lens(model, recording.last, recording.logits)
    if lens is None:
        return []
    plain = answer(model, lens, structure.depth, encoded).log_probability
    gains = []
    for component in track(candidates):
        ways: tuple[Way, ...] = ("zeroed", "averaged")
        after = {
            way: answer(model, lens, structure.depth, encoded, Silence(component, way)).log_probability for way in ways
        }
        best = max(ways, key=lambda way: after[way])
        gains.append(KnockoutGain(component, after[best] - plain, best))
    return sorted(gains, key=lambda gain: -gain.nats)
