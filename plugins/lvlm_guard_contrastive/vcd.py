"""Visual contrastive decoding: contrast with a noised image."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor

from lvlm_guard import Branch, Contrast, Generation, Plausible, Term, hookimpl
from lvlm_guard.fields import ContrastStrength, Plausibility, Seed

STEPS = 1000


@dataclass(frozen=True)
class VCD:
    """Contrast with a diffusion-noised image: `(1 + alpha) z - alpha z'` on plausible tokens.

    Leng et al., arXiv 2311.16922, eq. 3-4; noise after the released code (sigmoid schedule, indexed directly).
    The released code fell back to alpha 0.5 where a script forgot to pass it; the published 1.0 is the default here.
    `alpha = 0` is neutral: no branch, no terms.
    """

    name: ClassVar[str] = "vcd"
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "arXiv 2311.16922"
    cost: ClassVar[str] = "one branch"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}
    contrast_strength: ClassVar[str] = "alpha"

    alpha: ContrastStrength = 1.0
    beta: Plausibility = 0.1
    noise_step: Annotated[int, Field(ge=0, lt=STEPS, description="diffusion step of the noised image")] = 500
    seed: Seed = 0

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Add a branch that sees a noised image."""
        yield Branch(self._key, pixels=self._add_noise, seed=self.seed, depends_on_end=False)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Contrast with the noised branch, on plausible tokens."""
        yield Contrast(self._key, self.alpha)
        yield Plausible(self.beta)

    @property
    def _key(self) -> tuple[object, ...]:
        return ("diffusion noise", self.noise_step, self.seed)

    def _add_noise(self, pixels: Tensor, generator: Generator) -> Tensor:
        signal = signal_share(self.noise_step)
        noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32).to(pixels.device)
        return pixels.float().mul(signal**0.5).add(noise, alpha=(1 - signal) ** 0.5)


def signal_share(step: int) -> float:
    """Return the share of the image's variance that is left at a diffusion step in 0..999."""
    betas = torch.linspace(-6, 6, STEPS, dtype=torch.float64).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    return float((1 - betas).cumprod(0)[step])
