"""Decoding by contrasting layers: contrast with the earlier layer that differs most."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lvlm_guard import Generation, Mix, Plausible, Readout, StrategyRefused, Term, hookimpl
from lvlm_guard.fields import ContrastStrength, EarlierLayer, Plausibility

MOST = 20  # layers that `low` and `high` reach from either end of a deep decoder


@dataclass(frozen=True)
class DoLa:
    """Contrast with the earlier layer that differs most: `z - weight z_j`, `j = argmax JSD(z, z_j)`, if plausible.

    Chuang et al., arXiv 2309.03883, sections 2.2 and 2.3; the published weight is 1, and 0 is neutral. `layers`: `all` is every
    second output, {0, 2, ..., 30} of 32, as in papers on vision-language models, 0 being the embeddings; `low` and
    `high` are every second one of either half, as in transformers up to 4.55. Where head and embeddings share their
    weights, `all` and `low` start at 2. The last layer is never a candidate.

    The layer is chosen for each row and position; the released code and transformers average over the batch. Both read
    inner layers without the final norm, and so does the default here. Both also compute `KL(m | p) + KL(m | q)` with
    the mean `m` where the paper has `KL(p | m) + KL(q | m)`: `divergence="released"` is theirs. The published
    `repetition_penalty=1.2` is generate's own argument.
    """

    name: ClassVar[str] = "dola"
    family: ClassVar[str] = "layers"
    paper: ClassVar[str] = "arXiv 2309.03883"
    cost: ClassVar[str] = "one head product over the candidate layers"
    neutral: ClassVar[dict[str, float]] = {"weight": 0.0}

    weight: ContrastStrength = 1.0
    beta: Plausibility = 0.1
    layers: Annotated[
        Literal["all", "low", "high"] | tuple[EarlierLayer, ...],
        Field(description="candidates: all, low, high, layer numbers (0 is the embeddings), or fractions of the depth"),
    ] = "all"
    final_norm: Annotated[bool, Field(description="apply the final norm to inner layers")] = False
    divergence: Annotated[
        Literal["jensen_shannon", "released"], Field(description="the paper's or the released code's")
    ] = "jensen_shannon"

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Refuse a decoder that has none of the candidates."""
        if gen.model.depth <= 1 or not self._candidates(gen):
            raise StrategyRefused(
                f"'dola' needs a layer before the last of {gen.model.depth}: change layers={self.layers!r}, which has none."
            )

    @hookimpl
    def readouts(self, gen: Generation) -> Iterable[Readout]:
        """Read the candidate layers."""
        yield Readout(self._candidates(gen), self.final_norm)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Contrast with the candidate that differs most, on plausible tokens."""
        candidates = Readout(self._candidates(gen), self.final_norm)
        early = gen.readouts(candidates)
        furthest = gen.statistics.layers(candidates, self.divergence).argmax(0, keepdim=True)[..., None]
        yield Mix(early.gather(0, furthest.expand_as(early[:1]))[0], -self.weight)
        yield Plausible(self.beta)

    def _candidates(self, gen: Generation) -> tuple[float, ...]:
        depth, first = gen.model.depth, min(2, gen.model.depth - 1) if gen.model.tied_embeddings else 0
        if self.layers == "all":
            return tuple(range(first, depth, 2))
        if self.layers == "low":
            return tuple(range(first, min(depth // 2, MOST), 2)) or (first,)
        if self.layers == "high":
            return tuple(range(max(depth // 2, depth - MOST), depth, 2))
        return tuple(layer for layer in self.layers if gen.model.layer_number(layer) < depth)
