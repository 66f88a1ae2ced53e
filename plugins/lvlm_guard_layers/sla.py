"""Self-logits augmentation: mix in the logits of the last layers before the final one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lvlm_guard import Generation, Mix, Readout, Term, hookimpl
from lvlm_guard.fields import LayerOutputs, Share

LAYERS = tuple(layer / 32 for layer in range(25, 31))


@dataclass(frozen=True)
class SLA:
    """Average in a window of late layers: `(1 - gamma) z + gamma mean(z_l)`.

    Li et al., arXiv 2502.03628 (VISTA); its other half, visual steering vectors, is `vsv`. Layers are read
    with the final norm; published are 25 to 30 of 32 and gamma 0.3. `gamma = 0` is neutral.
    """

    name: ClassVar[str] = "sla"
    family: ClassVar[str] = "layers"
    paper: ClassVar[str] = "arXiv 2502.03628"
    cost: ClassVar[str] = "one head product over six layers"
    neutral: ClassVar[dict[str, float]] = {"gamma": 0.0}

    gamma: Annotated[Share, Field(description="share of the inner layers")] = 0.3
    layers: LayerOutputs = LAYERS

    @hookimpl
    def readouts(self, gen: Generation) -> Iterable[Readout]:
        """Read the window."""
        yield Readout(self.layers)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Put the mean of the window in place of a share of main."""
        yield Mix("main", -self.gamma)
        yield Mix(gen.readouts(Readout(self.layers)).float().mean(0), self.gamma)
