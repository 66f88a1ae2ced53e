"""Dynamic correction decoding: add the logits of the inner layer that is surest of a likely token."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lvlm_guard import Generation, Mix, Readout, Restrict, Term, hookimpl
from lvlm_guard.fields import Count, LayerOutputs, PositiveShare, Strength

LAYERS = tuple(layer / 32 for layer in range(20, 29))


@dataclass(frozen=True)
class DeCo:
    """Add the surest inner layer: `z + alpha m z_i`, over candidate tokens only.

    Wang et al., arXiv 2410.11779, after the released code: candidates are the tokens that make up `top_p` of the last layer's
    distribution, the one that crosses it included, at most `top_k`; over inner layers and candidates, the most likely
    pair names the layer `i` and its probability `m`. Inner layers are read with the final norm; published are 20 to 28
    of 32 and alpha 0.6. Tokens that are no candidates are removed, as in the released code. The released code reads
    every position of the prompt; here only those that predict. `alpha = 0` is neutral.
    """

    name: ClassVar[str] = "deco"
    family: ClassVar[str] = "layers"
    paper: ClassVar[str] = "arXiv 2410.11779"
    cost: ClassVar[str] = "one head product over nine layers"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}

    alpha: Annotated[Strength, Field(description="strength of the correction")] = 0.6
    top_p: Annotated[PositiveShare, Field(description="probability that the candidates make up")] = 0.9
    top_k: Annotated[Count, Field(description="most candidates")] = 20
    layers: LayerOutputs = LAYERS

    @hookimpl
    def readouts(self, gen: Generation) -> Iterable[Readout]:
        """Read the inner layers."""
        yield Readout(self.layers)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Add the logits of the surest layer, weighted by its probability, and keep the candidates only."""
        inner, (ids, eligible) = gen.readouts(Readout(self.layers)), self._candidates(gen)
        likely = (
            inner.gather(-1, ids.expand(*inner.shape[:-1], -1)).float() - gen.statistics.log_sum_exp(inner)[..., None]
        )
        surest, layer = likely.exp().where(eligible, 0.0).amax(-1).max(0)
        index = layer[None, ..., None].expand_as(inner[:1])
        yield Mix(inner.gather(0, index)[0], self.alpha * surest)
        yield Restrict(torch.zeros_like(gen.logits(), dtype=torch.bool).scatter(-1, ids, eligible))

    def _candidates(self, gen: Generation) -> tuple[Tensor, Tensor]:
        """Return the best tokens and which of them are candidates, `[rows, positions, top_k]` each."""
        best = gen.logits().float().topk(min(self.top_k, gen.logits().shape[-1]), dim=-1)
        mass = (best.values - gen.statistics.log_sum_exp("main")[..., None]).exp()
        return best.indices, mass.cumsum(-1) - mass < self.top_p
