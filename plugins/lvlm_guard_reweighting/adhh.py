"""Adaptive deactivation of hallucination heads: listed heads stop reading text where they mostly read text."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lvlm_guard import Artefact, AttentionEdit, Generation, InputError, StrategyRefused, View, hookimpl
from lvlm_guard.fields import ExistingFile, PositiveShare, Probability

Index = Annotated[int, Field(ge=0, le=10_000)]
Head = tuple[Index, Index]

LLAVA_1_5_7B: tuple[Head, ...] = (
    (16, 29), (26, 9), (13, 31), (15, 10), (20, 12), (30, 9), (19, 18), (17, 0), (18, 9), (26, 28),
    (19, 27), (18, 26), (15, 25), (14, 16), (31, 26), (15, 24), (31, 3), (22, 20), (27, 29), (17, 28),
)  # fmt: skip
"""(layer, head) of LLaVA-1.5-7B; github.com/TianyunYoung/Hallucination-Attribution, commit 841fc1b."""


@dataclass(frozen=True)
class ADHH:
    """Probabilities of text keys become 0 in listed heads where they sum to at least `tau`; nothing is renormalised.

    Yang et al., "Understanding and mitigating hallucination in large vision-language models via modular attribution
    and intervention", ICLR 2025. Text is everything after the image, generated tokens included; rows: the last of the
    prompt and every generated one. The released code sums the mass over the whole batch; here each row and head has
    its own. Heads are given, or fitted for one model (`lvlm-guard fit adhh`); with neither, the call is refused. Of fitted
    ones the worst are taken, as large a share of all heads as in the list published for LLaVA-1.5-7B (`LLAVA_1_5_7B`).
    `tau = 1` is neutral: switched off.
    """

    name: ClassVar[str] = "adhh"
    family: ClassVar[str] = "reweighting"
    paper: ClassVar[str] = "ICLR 2025, modular attribution and intervention"
    cost: ClassVar[str] = "attention of the newest row twice, in layers with listed heads"
    neutral: ClassVar[dict[str, float]] = {"tau": 1.0}

    tau: Annotated[Probability, Field(description="mass on text from which a head is cut off; 1 is never")] = 0.4
    heads: Annotated[tuple[Head, ...], Field(description="(layer, head) of each; none: the artefact's")] = ()
    artefact: Annotated[ExistingFile | None, Field(description="file made by lvlm-guard fit adhh")] = None
    share: Annotated[PositiveShare, Field(description="of the model's heads, taken from the artefact")] = 20 / 1024

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Take the heads given, or read them from the artefact."""
        if self.heads:
            gen.state[self.name] = self.heads
        elif self.artefact:
            ranked = Artefact.load(self.artefact, self.name, gen.model).read("heads", (None, 2), integers=True)
            limits = torch.tensor([gen.model.depth, gen.model.heads])
            if bool(((ranked < 0) | (ranked >= limits)).any()):
                raise InputError(
                    f"'adhh' needs heads of this decoder: fit an artefact on it; {self.artefact} lists heads beyond "
                    f"{limits.tolist()} [layers, heads]."
                )
            count = max(round(self.share * gen.model.depth * gen.model.heads), 1)
            gen.state[self.name] = [(layer, head) for layer, head in ranked[:count].tolist()]
        else:
            raise StrategyRefused("'adhh' needs heads: give `heads`, or an `artefact` from lvlm-guard fit adhh.")

    @hookimpl
    def attention(self, gen: Generation) -> Iterable[AttentionEdit]:
        """Edit each layer that has heads listed."""
        for layer, heads in _by_layer(gen.state[self.name]).items():
            yield AttentionEdit(
                (layer, layer + 1),
                self._cut,
                keys="after_image",
                queries="predicting",
                heads=heads,
                stage="probabilities",
                depends_on_end=False,
            )

    def _cut(self, probabilities: Tensor, view: View) -> Tensor:
        text = view.keys[:, None, None, :]
        mass = (probabilities * text).sum(-1, keepdim=True)
        return probabilities.masked_fill(text & (mass >= self.tau), 0.0)


def _by_layer(heads: Iterable[Head]) -> dict[int, tuple[int, ...]]:
    layers: dict[int, tuple[int, ...]] = {}
    for layer, head in sorted(set(heads)):
        layers[layer] = (*layers.get(layer, ()), head)
    return layers
