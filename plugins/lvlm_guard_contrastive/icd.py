"""Instruction contrastive decoding: contrast with the answer under a disturbing instruction."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lvlm_guard import Branch, Contrast, Generation, Insert, Plausible, Term, hookimpl
from lvlm_guard.fields import ContrastStrength, Plausibility, Text

DISTURBANCE = "You are a confused object detector and give only a vague impression of the image."


@dataclass(frozen=True)
class ICD:
    """Contrast with the same image under a disturbing instruction: `(1 + alpha) z - alpha z'` on plausible tokens.

    Wang et al., arXiv 2403.18715, eq. 4-5. The released LLaVA script replaces the system prompt; chat templates fence
    theirs with special tokens, so here the instruction goes before the image, or after it as in later
    re-implementations. Its wording is ours. `alpha = 0` is neutral.
    """

    name: ClassVar[str] = "icd"
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "arXiv 2403.18715"
    cost: ClassVar[str] = "one branch with a longer prompt"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}
    contrast_strength: ClassVar[str] = "alpha"

    alpha: ContrastStrength = 1.0
    beta: Plausibility = 0.1
    instruction: Annotated[Text, Field(min_length=1, description="the disturbing instruction")] = DISTURBANCE
    place: Annotated[
        Literal["start", "before_image", "after_image"], Field(description="where the instruction goes")
    ] = "before_image"

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Add a branch with the instruction in its prompt."""
        yield Branch(self._key, tokens=(Insert(gen.tokenize(self.instruction), self.place),))

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Contrast with the disturbed branch, on plausible tokens."""
        yield Contrast(self._key, self.alpha)
        yield Plausible(self.beta)

    @property
    def _key(self) -> tuple[object, ...]:
        return ("instruction", self.place, self.instruction)
