"""Control: the sharpening of a contrast, with nothing contrasted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lvlm_guard import Generation, Mix, Plausible, Term, hookimpl
from lvlm_guard.fields import ContrastStrength, Plausibility


@dataclass(frozen=True)
class Temperature:
    """`(1 + alpha) z`: a contrast of strength alpha with a branch whose logits are 0, so temperature `1 / (1 + alpha)`.

    Yin H. et al., arXiv 2504.10020: set alpha and beta to those of the contrast (or alpha to RITUAL's kappa) and see
    how much of its gain remains. Greedy decoding gives the same tokens without it. `alpha = 0` is neutral.
    """

    name: ClassVar[str] = "temperature"
    family: ClassVar[str] = "control"
    paper: ClassVar[str] = "arXiv 2504.10020"
    cost: ClassVar[str] = "none"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}

    alpha: Annotated[ContrastStrength, Field(description="strength of the contrast matched")] = 1.0
    beta: Annotated[Plausibility, Field(description="plausibility, relative to the best token; 0 is off")] = 0.0

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Add main once more, on plausible tokens."""
        yield Mix("main", self.alpha)
        yield Plausible(self.beta)
