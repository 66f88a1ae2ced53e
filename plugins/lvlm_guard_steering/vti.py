"""Visual and textual intervention: steer both towers by directions fitted offline."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_guard import Artefact, Generation, HiddenEdit, StrategyRefused, Turn, View, hookimpl
from lvlm_guard.fields import ExistingFile, Strength

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
            yield HiddenEdit("mlp", Turn(self._find_text_direction, STEP * self.alpha_text), depends_on_end=False)
        if self.alpha_image:
            yield HiddenEdit(
                "mlp", Turn(self._find_image_direction, STEP * self.alpha_image), tower="vision", depends_on_end=False
            )

    def _find_text_direction(self, _: Tensor, view: View) -> Tensor:
        unit: Tensor = view.gen.state[self.name]["decoder"][view.layer]
        return unit

    def _find_image_direction(self, hidden: Tensor, view: View) -> Tensor:
        directions = view.gen.state[self.name]["vision"]
        if view.layer >= len(directions) or directions.shape[-1] != hidden.shape[-1]:
            raise StrategyRefused(
                f"'vti' needs directions of this vision tower: fit an artefact on it; {self.artefact} holds "
                f"{list(directions.shape)} [layers, tokens, hidden], and layer {view.layer} works on {hidden.shape[-1]}."
            )
        direction = directions[view.layer].to(hidden.device)
        fits = direction.shape[0] == hidden.shape[-2]
        return normalize(direction if fits else direction.mean(0), dim=-1)
