"""Pay attention to image: lift the attention to the image, and contrast with a branch without it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lvlm_guard import AttentionEdit, Branch, Contrast, Generation, Plausible, Term, hookimpl
from lvlm_guard.fields import LayerRange, Strength

NO_IMAGE = Branch.without_image()
BETA = 0.1


@dataclass(frozen=True)
class PAI:
    """Scores `s + alpha |s|` on image keys where tokens are predicted, then `z + (gamma - 1)(z - z')` on plausible tokens.

    Liu et al., arXiv 2407.21771, ECCV 2024. `z'` are the logits without the image and without the edit. The paper writes the
    contrast in log-probabilities, `lp' + gamma (lp - lp')`: the same up to a constant per row. Rows: the last of the
    prompt and every generated one; all heads; the released commands' numbers (their parser falls back to gamma 2). The
    plausibility cut is the released code's fixed 0.1; it goes with the contrast. Layers are fractions of the depth, or
    whole layers. `alpha = 0` and `gamma = 1` are neutral, each alone switching off its half.
    """

    name: ClassVar[str] = "pai"
    family: ClassVar[str] = "reweighting"
    paper: ClassVar[str] = "arXiv 2407.21771"
    cost: ClassVar[str] = "one image-free branch; attention of the newest row twice"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0, "gamma": 1.0}

    alpha: Annotated[Strength, Field(description="lift of the image's scores")] = 0.2
    gamma: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False, description="guidance; 1 runs no branch")] = 1.1
    layers: LayerRange = (2 / 32, 1.0)

    @hookimpl
    def attention(self, gen: Generation) -> Iterable[AttentionEdit]:
        """Lift the image's scores."""
        if self.alpha:
            yield AttentionEdit(self.layers, "add_abs", self.alpha, keys="image", queries="predicting")

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Add the branch without the image, which other strategies share."""
        if self.gamma > 1:
            yield NO_IMAGE

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Contrast with the image-free branch, on plausible tokens."""
        if self.gamma > 1:
            yield Contrast(NO_IMAGE, self.gamma - 1)
            yield Plausible(BETA)
