"""Null-space projection: remove the directions of hallucination from feed-forward outputs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from lvlm_guard import Artefact, Generation, HiddenEdit, InputError, Project, View, hookimpl
from lvlm_guard.fields import Count, ExistingFile, LayerRange, Share


@dataclass(frozen=True)
class Nullu:
    """Remove the span of `k` fitted directions from feed-forward outputs: `y - strength * P y`, every position.

    Yang et al., arXiv 2412.13817: `P` is the sum of `v v^T` over the first `k` right singular vectors of truthful minus
    hallucinated hidden states, and the paper multiplies the last weight of the block by `I - P`. Where that layer has
    no bias and no norm behind it this is the same, with the weights untouched. Layers are the published 16 to 31 of 32; `k` is that of the
    released instructions, whose argument parser says 8. `strength = 0` is neutral, 1 is published.
    """

    name: ClassVar[str] = "nullu"
    family: ClassVar[str] = "steering"
    paper: ClassVar[str] = "arXiv 2412.13817"
    cost: ClassVar[str] = "none per token; fitted offline"
    neutral: ClassVar[dict[str, float]] = {"strength": 0.0}

    artefact: Annotated[ExistingFile, Field(description="file made by lvlm-guard fit nullu")]
    strength: Annotated[Share, Field(description="share of the projection that is removed")] = 1.0
    k: Annotated[Count, Field(description="how many directions are removed")] = 4
    layers: LayerRange = (0.5, 1.0)

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Read the directions."""
        artefact = Artefact.load(self.artefact, self.name, gen.model)
        directions = artefact.read("directions", (gen.model.depth, None, gen.model.hidden_size))
        if self.k > directions.shape[1]:
            raise InputError(
                f"'nullu' needs {self.k} directions: lower k, for {self.artefact} holds {directions.shape[1]}."
            )
        gen.state[self.name] = directions[:, : self.k].to(gen.prompt.ids.device).unbind()

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Project feed-forward outputs."""
        yield HiddenEdit("mlp", Project(self._find_directions, self.strength), self.layers, depends_on_end=False)

    def _find_directions(self, _: Tensor, view: View) -> Tensor:
        directions: Tensor = view.gen.state[self.name][view.layer]  # [k, hidden]
        return directions
