"""Fog contrast: subtract what the model says about the image when a grey fog hides it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Generator, Tensor

from lvlm_guard import Branch, Contrast, Generation, Plausible, Term, hookimpl
from lvlm_guard.fields import ContrastStrength, Plausibility


@dataclass(frozen=True)
class Fog:
    """Contrast with a fogged image: `(1 + alpha) z - alpha z'` on plausible tokens. `alpha = 0` is neutral."""

    name: ClassVar[str] = "fog"
    family: ClassVar[str] = "contrastive"
    cost: ClassVar[str] = "one branch"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}
    contrast_strength: ClassVar[str] = "alpha"

    alpha: ContrastStrength = 1.0
    beta: Plausibility = 0.1
    density: Annotated[float, Field(gt=0, lt=1, description="share of the image that the fog hides")] = 0.9

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """One branch that sees the image through the fog."""
        return [self._fogged]

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Contrast with the fogged branch, on plausible tokens."""
        return [Contrast(self._fogged, self.alpha), Plausible(self.beta)]

    @property
    def _fogged(self) -> Branch:
        return Branch(("fog", self.density), pixels=self._fog)

    def _fog(self, pixels: Tensor, generator: Generator) -> Tensor:
        return pixels * (1 - self.density)


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the strategy to every guard."""
    register(Fog)
