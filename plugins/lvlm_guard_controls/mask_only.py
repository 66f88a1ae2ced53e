"""Control: the plausibility cut of contrastive decoding, with nothing contrasted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from lvlm_guard import Generation, Plausible, Term, hookimpl
from lvlm_guard.fields import Plausibility


@dataclass(frozen=True)
class MaskOnly:
    """Demote tokens under `beta` times main's best probability, and nothing else.

    Yin H. et al., arXiv 2504.10020: under sampling, the cut alone explains much of what contrastive decoding gains.
    Greedy decoding gives the same tokens without it. `beta = 0` is neutral.
    """

    name: ClassVar[str] = "mask_only"
    family: ClassVar[str] = "control"
    paper: ClassVar[str] = "arXiv 2504.10020"
    cost: ClassVar[str] = "none"
    neutral: ClassVar[dict[str, float]] = {"beta": 0.0}

    beta: Plausibility = 0.1

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Cut implausible tokens."""
        yield Plausible(self.beta)
