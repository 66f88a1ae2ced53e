"""The forward that runs in this context: its layout, and what hooks inside its layers capture."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from lvlm_guard.arithmetic.effect_tracking import EffectTracker
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.interventions.layout import ForwardLayout
from lvlm_guard.strategy.edits import AttentionCapture, AttentionEdit
from lvlm_guard.strategy.generation import Generation

_running: ContextVar[RunningForward | None] = ContextVar("lvlm_guard_running_forward", default=None)


Reach = Literal["own", "across", "both"]


@dataclass(frozen=True)
class Attending:
    """One attention module of the decoder.

    Args:
        layer: Index of the layer it lies in.
        heads: Query heads.
        reach: Whose keys it has: the decoder's own positions, what stands across (the image, or all that an encoder read), or
            both, those across last.
    """

    layer: int
    heads: int
    reach: Reach


class Owner(Protocol):
    """The interventions of one call, as attention looks at them."""

    @property
    def attention_plan(self) -> Mapping[nn.Module, Sequence[AttentionEdit | AttentionCapture]]:
        """Edits and captures of every attention module that has any."""
        ...

    @property
    def attention_modules(self) -> Mapping[nn.Module, Attending]:
        """The attention modules that can be edited."""
        ...

    @property
    def effects(self) -> EffectTracker:
        """Where it is noted which edit changed anything."""
        ...

    def check_applied(self, running: RunningForward) -> None:
        """Raise where a forward that has run did not apply what it was asked to."""
        ...


@dataclass(eq=False)
class Captures:
    """What hooks capture in one forward.

    Args:
        hidden: What layers that are read out returned, all rows and positions, by count of layers.
        online: Logits of layers that later layers read, by count of layers.
        beside_head: Logits of inner layers that the model's own head product computed along, by (layer, whether normed).
        head_rows: Rows of the model's own input to its head, once other rows were joined to it; 0 before.
        block_inputs: What blocks took whose output is edited behind a norm, by layer and site.
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    online: dict[int, Tensor] = field(default_factory=dict)
    beside_head: dict[tuple[int, bool], Tensor] = field(default_factory=dict)
    head_rows: int = 0
    block_inputs: dict[tuple[int, str], Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RunningForward:
    """One forward of the decoder.

    Args:
        gen: The generation it belongs to.
        layout: Whose rows and which positions it holds.
        owner: The interventions of this call; those of other calls leave the forward alone.
        captures: What hooks capture.
        applied: Edits, and attention that is edited, that this forward came to, and in which layers.
    """

    gen: Generation
    layout: ForwardLayout
    owner: Owner | None = None
    captures: Captures = field(default_factory=Captures)
    applied: set[tuple[Hashable, int]] = field(default_factory=set)

    def mark(self, work: Hashable, layer: int) -> None:
        """Note that this forward came to an edit, or to attention that is edited, in a layer.

        Raises:
            ModelRefused: It came there before: which of the two runs is meant cannot be told.
        """
        if (work, layer) in self.applied:
            raise ModelRefused(
                f"What is edited in layer {layer} of this model runs more than once in a forward, so which run is meant "
                "cannot be told. Leave this layer out."
            )
        self.applied.add((work, layer))

    def captured(self, layer: int, branch: Hashable) -> Tensor:
        """What a layer returned for the rows of a block, where they predict generated tokens."""
        return self.captures.hidden[layer][self.layout.rows(branch), -self.layout.predicting :]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let everything inside the layers know that this forward runs, and check that all of it was reached.

        Raises:
            ModelRefused: The forward did not come to something that is edited.
        """
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)
        if self.owner is not None:
            self.owner.check_applied(self)
            self.owner.effects.read_when_due(self.layout.generated)


def running_forward() -> RunningForward | None:
    """The guarded forward that runs in this context, if any."""
    return _running.get()
