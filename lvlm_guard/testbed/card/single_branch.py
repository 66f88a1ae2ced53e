"""What the model says when it sees less: strategies that answer with a branch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lvlm_guard.strategy.branches import Branch
from lvlm_guard.strategy.generation import Generation
from lvlm_guard.strategy.hookspecs import hookimpl
from lvlm_guard.strategy.terms import Mix, Term


@dataclass(frozen=True)
class Blind:
    """Main's logits replaced by those without the image."""

    name: ClassVar[str] = "blind"

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """One branch without the image."""
        yield Branch(self, image="removed")

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """The branch in place of main."""
        return _instead(self)


@dataclass(frozen=True)
class Noised:
    """Main's logits replaced by those of a noised image that keeps `signal_share` of its variance."""

    name: ClassVar[str] = "noised"

    signal_share: float = 0.135

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """One branch with a noised image."""
        yield Branch(self, pixels=_noise(self.signal_share))

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """The branch in place of main."""
        return _instead(self)


def _instead(branch: object) -> tuple[Term, ...]:
    return Mix("main", -1.0), Mix(branch, 1.0)


def _noise(signal_share: float) -> Callable[[Tensor, Generator], Tensor]:
    def edit(pixels: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
        return pixels.float() * signal_share**0.5 + noise * (1 - signal_share) ** 0.5

    return edit
