"""Visual and textual intervention: steer both towers by directions fitted offline."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_guard import Artefact, Generation, HiddenEdit, StrategyRefused, View, hookimpl
from lvlm_guard.fields import ExistingFile, Strength
from lvlm_guard_steering.turning import norm, scale_to

STEP = 0.1


@dataclass(frozen=True)
class VTI:
    """Turn feed-forward outputs towards fitted directions: `|y| norm(norm(y) + 0.1 alpha norm(d))`, every position.

    Liu et al., arXiv 2410.15778; defaults and the factor 0.1 after the released code. The decoder is turned by a
    direction per layer, the vision tower by one per layer and token, or by their mean where the number of tokens differs from
    that of the fit. The released code fits the last layer's direction behind the final norm and casts to half
    precision; here it is the residual stream, in fp32. `alpha_text = 0` and `alpha_image = 0` are neutral.
    """

    name: ClassVar[str] = "vti"
    family: ClassVar[str] = "steering"
    paper: ClassVar[str] = "arXiv 2410.15778"
    cost: ClassVar[str] = "none per token; fitted offline"
    neutral: ClassVar[dict[str, float]] = {"alpha_text": 0.0, "alpha_image": 0.0}

    artefact: Annotated[ExistingFile, Field(description="file made by lvlm-guard fit vti")]
    alpha_text: Annotated[Strength, Field(description="strength in the decoder")] = 0.9
    alpha_image: Annotated[Strength, Field(description="strength in the vision tower")] = 0.9

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Read the directions."""
        artefact = Artefact.load(self.artefact, self.name, gen.model)
        device = gen.prompt.ids.device
        gen.state[self.name] = {
            "decoder": normalize(
                artefact.read("decoder", (gen.model.depth, gen.model.hidden_size)).to(device), dim=-1
            ).unbind(),
            "vision": artefact.read("vision", (None, None, None)).to(device),
        }

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Turn both towers."""
        if self.alpha_text:
            yield HiddenEdit("mlp", self._turn_decoder, depends_on_end=False)
        if self.alpha_image:
            yield HiddenEdit("mlp", self._turn_vision, tower="vision", depends_on_end=False)

    def _turn_decoder(self, hidden: Tensor, view: View) -> Tensor:
        unit = view.gen.state[self.name]["decoder"][view.layer].to(hidden.device)
        return turn_towards(hidden.float(), unit, self.alpha_text)

    def _turn_vision(self, hidden: Tensor, view: View) -> Tensor:
        directions = view.gen.state[self.name]["vision"]
        if view.layer >= len(directions) or directions.shape[-1] != hidden.shape[-1]:
            raise StrategyRefused(
                f"'vti' needs directions of this vision tower: fit an artefact on it; {self.artefact} holds "
                f"{list(directions.shape)} [layers, tokens, hidden], and layer {view.layer} works on {hidden.shape[-1]}."
            )
        direction = directions[view.layer].to(hidden.device)
        fits = direction.shape[0] == hidden.shape[-2]
        unit = normalize(direction if fits else direction.mean(0), dim=-1)
        return turn_towards(hidden.float(), unit, self.alpha_image)


def turn_towards(hidden: Tensor, unit: Tensor, alpha: float) -> Tensor:
    """Turn hidden states `[..., hidden]` towards a unit vector and keep their norms: the formula times `|y|`."""
    size = norm(hidden)
    return scale_to(torch.add(hidden, size * unit, alpha=STEP * alpha), size)
