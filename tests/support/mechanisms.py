"""A strategy for every mechanism that puts something on the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from gold import SUPPRESSED, Against

from lvlm_guard import AttentionEdit, HiddenEdit, Mix, Readout, Restrict, Search, hookimpl

KEPT = Restrict(~torch.isin(torch.arange(128), torch.tensor(SUPPRESSED)))


@dataclass(frozen=True)
class Inside:
    """Does inside the model what it is made with."""

    name: ClassVar[str] = "inside"
    attends: tuple[Any, ...] = ()
    hides: tuple[Any, ...] = ()
    reads: tuple[Any, ...] = ()
    loop: Callable[[Any], Any] | None = None

    @hookimpl
    def attention(self, gen: Any) -> Any:
        return self.attends

    @hookimpl
    def hidden(self, gen: Any) -> Any:
        return self.hides

    @hookimpl
    def readouts(self, gen: Any) -> Any:
        return self.reads

    @hookimpl
    def search(self, gen: Any) -> Any:
        return [Search(self.loop)] if self.loop else []

    @hookimpl
    def terms(self, gen: Any) -> Any:
        yield KEPT
        if self.reads:
            yield from (Mix(layer, 0.5) for layer in gen.readouts(self.reads[0]))


def flipped(hidden: torch.Tensor, view: Any) -> torch.Tensor:
    return 8 * hidden.flip(-1)


def greedy(decoder: Any) -> torch.Tensor:
    while decoder.generated.shape[1] < decoder.limit:
        decoder.append(decoder.logits().argmax(-1))
        decoder.finished()
    generated: torch.Tensor = decoder.generated
    return generated


MECHANISMS: dict[str, list[Any]] = {
    "branch": [Against("noised")],
    "attention": [Inside(attends=(AttentionEdit((1, 3), "add", 3.0, keys="image", queries="all"),))],
    "hidden": [Inside(hides=(HiddenEdit("residual", flipped, layers=(1, 3)),))],
    "embedding": [Inside(hides=(HiddenEdit("embedding", flipped),))],
    "readout": [Inside(reads=(Readout((1, 2)),))],
    "vision": [Inside(hides=(HiddenEdit("residual", flipped, tower="vision"),))],
    "search": [Inside(loop=greedy), Against("noised")],
}
