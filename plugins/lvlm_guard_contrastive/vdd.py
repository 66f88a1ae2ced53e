"""Visual debias decoding: contrast with no image at all."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lvlm_guard import Branch, Generation, Mix, Plausible, Term, hookimpl
from lvlm_guard.fields import ContrastStrength, Plausibility


@dataclass(frozen=True)
class VDD:
    """Contrast with image-free branches: `(1 + alpha) z - alpha z'` on plausible tokens.

    Zhang et al., arXiv 2403.05262, eq. 5-6. `none` drops the image placeholders, `unk` puts one unknown token in their
    place, `both` averages the logits of the two. The released code replaces placeholders before they are expanded, so
    a whole image becomes a single token; so it does here. `alpha = 0` is neutral.
    """

    name: ClassVar[str] = "vdd"
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "arXiv 2403.05262"
    cost: ClassVar[str] = "one or two image-free branches"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}
    contrast_strength: ClassVar[str] = "alpha"

    alpha: ContrastStrength = 1.0
    beta: Plausibility = 0.1
    blank: Annotated[Literal["none", "unk", "both"], Field(description="what stands for the image")] = "both"
    unk_id: Annotated[
        int | None, Field(ge=0, lt=2**31, description="id of the unknown token; none: the tokenizer's, else 0")
    ] = None

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Add image-free branches."""
        return self._blanks(gen)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Contrast with the mean of the image-free branches."""
        blanks = self._blanks(gen)
        yield Mix("main", self.alpha)
        yield from (Mix(blank, -self.alpha / len(blanks)) for blank in blanks)
        yield Plausible(self.beta)

    def _blanks(self, gen: Generation) -> list[Branch]:
        none, unk = Branch.without_image(), Branch.without_image(self._unknown_token(gen))
        return {"none": [none], "unk": [unk], "both": [none, unk]}[self.blank]

    def _unknown_token(self, gen: Generation) -> int:
        unk_id = self.unk_id if self.unk_id is not None else getattr(gen.model.tokenizer, "unk_token_id", None)
        return 0 if unk_id is None else int(unk_id)
