"""Eleven ways to be wrong, each of which must turn the contract red."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from lvlm_guard import Branch, Contrast, Generation, Guard, HiddenEdit, Term, hookimpl


@dataclass(frozen=True)
class Honest:
    """What the saboteurs pretend to be."""

    name: ClassVar[str] = "saboteur"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}

    alpha: Annotated[float, Field(ge=0)] = 1.0

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        yield Branch("noise", pixels=self.noised)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        yield Contrast("noise", self.weight(gen))

    def weight(self, gen: Generation) -> float | Tensor:
        return self.alpha

    def noised(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return pixels + torch.randn(pixels.shape, generator=generator).to(pixels.device)


@dataclass(frozen=True)
class LeftoverHook(Honest):
    """Registers a hook on the model and forgets it."""

    model: Any = None

    @hookimpl
    def start(self, gen: Generation) -> None:
        gen.state["model"].get_decoder().register_forward_hook(lambda *_: None)


@dataclass(frozen=True)
class BatchWideMean(Honest):
    """Lets every row's weight depend on the whole batch."""

    def weight(self, gen: Generation) -> float | Tensor:
        return self.alpha * gen.logits().float().softmax(-1).amax(-1).mean().expand(gen.logits().shape[:2])


@dataclass(frozen=True)
class MutatedWeight(Honest):
    """Nudges a parameter of the model."""

    @hookimpl
    def start(self, gen: Generation) -> None:
        next(gen.state["model"].parameters()).data.mul_(1 + 1e-6)


@dataclass(frozen=True)
class UnseededDraw(Honest):
    """Draws from the global random state."""

    def noised(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return pixels + torch.randn(pixels.shape).to(pixels.device)


@dataclass(frozen=True)
class NoOp(Honest):
    """Asks for a branch and does nothing with it."""

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        return []


@dataclass(frozen=True)
class LeftBehind(Honest):
    """Shifts hidden states by what lies where the prompt is, wherever the layer is."""

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        shift = gen.prompt.ids.new_full((), 0.5, dtype=torch.float32).reshape(1)
        yield HiddenEdit("mlp", lambda hidden, view: hidden + self.alpha * shift)


@dataclass(frozen=True)
class Waiting(Honest):
    """Reads a number back from the device in every forward."""

    def weight(self, gen: Generation) -> float:
        return self.alpha * (1 + 1e-6 * float(gen.logits()[0, -1].max()))


class _Late(LogitsProcessor):  # type: ignore[misc] # transformers is untyped here
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + torch.linspace(0, 3, scores.shape[-1])


class LateGuard(Guard):
    """Combines behind the processors."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        processors = LogitsProcessorList([*kwargs.pop("logits_processor", []), _Late()])
        return self.model.generate(*args, **kwargs, logits_processor=processors)
