"""Multi-modal mutual-information decoding: lean harder on the image the longer the answer gets."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from lvlm_guard import Branch, Contrast, Generation, Plausible, Statistics, Term, hookimpl
from lvlm_guard.fields import Plausibility, PositiveShare, Strength

NO_IMAGE = Branch.without_image()


@dataclass(frozen=True)
class M3ID:
    """Contrast with an image-free branch, weight `(1 - g) / g` with `g = exp(-decay t)`, t = 1 for the first token.

    Favero et al., arXiv 2403.14003, eq. 7-9. There is no official code. Re-implementations count t from 0, which makes
    the first token, and so every one-word answer, plain generate; here t counts from 1 as in the paper. They also put
    a plausibility cut (`beta`) in place of the paper's gate; `confidence` is that gate: rows whose best token is at
    least that likely are left alone (1 is off). `decay = 0` is neutral.
    """

    name: ClassVar[str] = "m3id"
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "arXiv 2403.14003"
    cost: ClassVar[str] = "one image-free branch"
    neutral: ClassVar[dict[str, float]] = {"decay": 0.0}

    decay: Annotated[Strength, Field(le=1, description="forgetting rate per token (lambda)")] = 0.02
    beta: Plausibility = 0.1
    confidence: Annotated[PositiveShare, Field(description="leave rows this sure alone; 1 is off")] = 1.0

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Add the branch without the image."""
        yield NO_IMAGE

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Contrast more at later positions, where main is unsure."""
        growth = ((gen.positions + 1) * self.decay).exp() - 1
        yield Contrast(NO_IMAGE, lambda statistics: self._weight(statistics, growth))
        yield Plausible(self.beta)

    def _weight(self, statistics: Statistics, growth: Tensor) -> Tensor:
        """Return the weight `[rows, positions]`; `(1 - g) / g` is `exp(decay t) - 1`."""
        best = statistics.max_probability("main")
        return growth * (best < self.confidence) if self.confidence < 1 else growth.expand_as(best)
