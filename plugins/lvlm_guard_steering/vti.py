"""Visual and textual intervention: steer both towers by directions fitted offline."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_guard import Artefact, Generation, HiddenEdit, View, hookimpl
from lvlm_guard.fields import Strength
from lvlm_guard_steering.turning import at_length, length

STEP = 0.1


@dataclass(frozen=True)
class VTI:
    """Turn feed-forward outputs towards fitted directions: `|y| norm(norm(y) + 0.1 alpha norm(d))`, every position.

    Liu et al., arXiv 2410.15778; defaults and the factor 0.1 after the released code. The decoder is turned by a
    direction per layer, the vision tower by one per layer and token, or their mean where it sees another number of
    tokens than in the fit. The released code fits the last layer's direction behind the final norm and casts to half
    precision; here it is the residual stream, in fp32. `alpha_text = 0` and `alpha_image = 0` are neutral.
    """

    name: ClassVar[str] = "vti"
    family: ClassVar[str] = "steering"
    paper: ClassVar[str] = "arXiv 2410.15778"
    cost: ClassVar[str] = "none per token; fitted offline"
    neutral: ClassVar[dict[str, float]] = {"alpha_text": 0.0, "alpha_image": 0.0}

    artefact: Annotated[Path, Field(description="file made by lvlm-guard fit vti")]
    alpha_text: Annotated[Strength, Field(description="strength in the decoder")] = 0.9
    alpha_image: Annotated[Strength, Field(description="strength in the vision tower")] = 0.9

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Read the directions."""
        found = Artefact.load(self.artefact, self.name, gen.model.config)
        device = gen.prompt.ids.device
        gen.state[self.name] = {
            "decoder": normalize(found["decoder"].to(device), dim=-1).unbind(),
            "vision": found["vision"].to(device),
        }

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Turn both towers."""
        if self.alpha_text:
            yield HiddenEdit("mlp", self._turn_decoder)
        if self.alpha_image:
            yield HiddenEdit("mlp", self._turn_vision, tower="vision")

    def _turn_decoder(self, hidden: Tensor, view: View) -> Tensor:
        unit = view.gen.state[self.name]["decoder"][view.layer].to(hidden.device)
        return turned(hidden.float(), unit, self.alpha_text)

    def _turn_vision(self, hidden: Tensor, view: View) -> Tensor:
        direction = view.gen.state[self.name]["vision"][view.layer].to(hidden.device)
        fits = direction.shape[0] == hidden.shape[-2]
        unit = normalize(direction if fits else direction.mean(0), dim=-1)
        return turned(hidden.float(), unit, self.alpha_image)


def turned(hidden: Tensor, unit: Tensor, alpha: float) -> Tensor:
    """Hidden states `[..., hidden]` turned towards a unit vector, their norms kept: the formula times `|y|`."""
    size = length(hidden)
    return at_length(torch.add(hidden, size * unit, alpha=STEP * alpha), size)
