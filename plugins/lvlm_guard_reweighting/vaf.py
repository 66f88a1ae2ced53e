"""Visual amplification fusion: scale attention scores towards the image in the middle layers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lvlm_guard import AttentionEdit, Generation, hookimpl
from lvlm_guard.fields import Factor, LayerRange


@dataclass(frozen=True)
class VAF:
    """Scores before mask and softmax times `enhance` on image keys and times `suppress` on keys before the image.

    Yin et al., ClearSight, arXiv 2503.13107, CVPR 2025. Signed, so that a negative score of the image sinks further
    (PAI's does not). Rows: all after the image, of the prompt too; layers 9 to 14 of 32; all heads, as released (the
    paper speaks of heads that attend to the image). Layers are fractions of the depth, or whole layers. `enhance = 1`
    and `suppress = 1` are neutral, each for its own keys.
    """

    name: ClassVar[str] = "vaf"
    family: ClassVar[str] = "reweighting"
    paper: ClassVar[str] = "arXiv 2503.13107"
    cost: ClassVar[str] = "attention of the rows after the image twice, in a few layers"
    neutral: ClassVar[dict[str, float]] = {"enhance": 1.0, "suppress": 1.0}

    enhance: Annotated[Factor, Field(description="factor on the image's scores")] = 1.15
    suppress: Annotated[Factor, Field(description="factor on scores before the image")] = 0.95
    layers: LayerRange = (9 / 32, 15 / 32)

    @hookimpl
    def attention(self, gen: Generation) -> Iterable[AttentionEdit]:
        """Scale the scores of the image, and those before it."""
        if self.enhance != 1:
            yield AttentionEdit(self.layers, "scale", self.enhance, keys="image", queries="after_image")
        if self.suppress != 1:
            yield AttentionEdit(self.layers, "scale", self.suppress, keys="before_image", queries="after_image")
