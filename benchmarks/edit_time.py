"""Hidden edits timed where they run, for models whose whole step varies by more than an edit costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from variants import Variant, timed

from lvlm_guard.anatomy import decoder_layers, layer_part

SECONDS_TO_MS = 1e3
FACTOR = 1.01


@dataclass
class Stretches:
    """Time from the end of each layer's feed-forward block to the end of the layer, where edits of its output run.

    Args:
        layers: Decoder layers.
        ends: Seconds of every stretch of the decode steps, layer by layer.
    """

    layers: Sequence[Any]
    ends: list[float] = field(default_factory=list)
    _begun: float = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hooks that look at the clock; first in line, as the guard puts its own behind them."""
        handles = [layer_part(layer, "mlp").register_forward_hook(self._begin) for layer in self.layers]
        handles += [layer.register_forward_hook(self._end) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def per_step(self) -> float:
        """Milliseconds of one decode step, median over steps."""
        depth = len(self.layers)
        steps = [sum(self.ends[start : start + depth]) for start in range(0, len(self.ends), depth)]
        return statistics.median(steps) * SECONDS_TO_MS

    def _begin(self, *_: Any) -> None:
        self._begun = time.perf_counter()

    def _end(self, _: Any, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[-2] == 1:
            self.ends.append(time.perf_counter() - self._begun)


@dataclass(frozen=True)
class EditTime:
    """Milliseconds added to a decode step between feed-forward block and layer's end; the call of a first hook is not in them.

    Args:
        guarded: By the edits of a guard.
        multiplied: By a bare hook that multiplies each block's output by a number: no edit can cost less.
    """

    guarded: float
    multiplied: float


def edit_time(model: Any, plain: Variant, edited: Variant, new_tokens: int) -> EditTime:
    """Time edits of feed-forward outputs, and the least that any edit costs, one call each."""
    parts = [layer_part(layer, "mlp") for layer in decoder_layers(model)]
    bare = Variant("one multiplication", hooked(model, parts, lambda _, __, output: output * FACTOR), plain.inputs)
    before, guarded, least = (_inside(model, variant, new_tokens) for variant in (plain, edited, bare))
    return EditTime(guarded - before, least - before)


def hooked(model: Any, parts: Sequence[Any], hook: Callable[..., Any]) -> Callable[..., Any]:
    """Plain generate with one forward hook on each of some parts of the model."""

    def generate(**settings: Any) -> Any:
        handles = [part.register_forward_hook(hook) for part in parts]
        try:
            return model.generate(**settings)
        finally:
            for handle in handles:
                handle.remove()

    return generate


def _inside(model: Any, variant: Variant, new_tokens: int) -> float:
    stretches = Stretches(decoder_layers(model))
    with stretches.watched():
        timed(variant, new_tokens, model.device)
    return stretches.per_step()
