"""Hidden edits timed where they run, for models whose whole step varies by more than an edit costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from variants import Variant, timed

from lvlm_guard.anatomy import decoder_layers, layer_part

SECONDS_TO_MS = 1e3


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


def edit_ms(model: Any, plain: Variant, edited: Variant, new_tokens: int) -> float:
    """Milliseconds that edits of feed-forward outputs add to a decode step, without what calling a hook at all costs."""
    found = []
    for variant in (plain, edited):
        stretches = Stretches(decoder_layers(model))
        with stretches.watched():
            timed(variant, new_tokens, model.device)
        found.append(stretches.per_step())
    return found[1] - found[0]
