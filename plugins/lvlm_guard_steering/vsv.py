"""Visual steering vector: steer towards what the image adds to the prompt."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_guard import Branch, Generation, HiddenEdit, StrategyRefused, Turn, View, hookimpl
from lvlm_guard.fields import Strength

FAINT = 1e-3
"""A layer at which the image changes less than this share of the hidden state has a direction made of rounding."""


@dataclass(frozen=True)
class VSV:
    """Turn feed-forward outputs towards the image: `|x| norm(norm(x) + w norm(d))`, every position and layer.

    Li et al. (VISTA), arXiv 2502.03628: `d` is the hidden state of the prompt's last token after the layer, with the
    image minus without it, computed for every request; `w = strength (1 + max(0, cos(x, -d)))` is larger where `x`
    points away. The released code asserts one row; here every row has its own `d`. It takes the first principal
    component of the single difference, which is the difference. The default is the published CHAIR setting of
    LLaVA-1.5; POPE has 0.01. Layers that the image has not reached yet are left alone. `strength = 0` is neutral.
    """

    name: ClassVar[str] = "vsv"
    family: ClassVar[str] = "steering"
    paper: ClassVar[str] = "arXiv 2502.03628"
    cost: ClassVar[str] = "two prefills per request"
    neutral: ClassVar[dict[str, float]] = {"strength": 0.0}

    strength: Annotated[Strength, Field(description="strength of the turn (lambda)")] = 0.17

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Run the prompt with and without the image."""
        if not gen.prompt.has_image:
            raise StrategyRefused("'vsv' needs an image: pass one, or drop 'vsv'.")
        with_image = gen.prompt_states().hidden
        difference = with_image - gen.prompt_states(Branch.without_image()).hidden
        is_clear = difference.norm(dim=-1, keepdim=True) > FAINT * with_image.norm(dim=-1, keepdim=True)
        for layer, unit in enumerate((normalize(difference, dim=-1) * is_clear).split(1, dim=1)):
            gen.rows.put(f"{self.name} {layer}", unit)

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Turn every layer's feed-forward output."""
        yield HiddenEdit("mlp", Turn(self._find_direction, self.strength, opposed=True))

    def _find_direction(self, _: Tensor, view: View) -> Tensor:
        """Return the unit vectors `[rows, 1, hidden]` of a layer: times `|x|`, the formula is a turn, further where `x` points away."""
        unit: Tensor = view.gen.rows[f"{self.name} {view.layer}"]
        return unit
