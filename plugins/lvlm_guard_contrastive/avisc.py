"""Attentional vision calibration: contrast with the image tokens that attract most attention."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from lvlm_guard import (
    AttentionCapture,
    Branch,
    Contrast,
    Generation,
    HiddenEdit,
    Plausible,
    StrategyRefused,
    Term,
    View,
    hookimpl,
)
from lvlm_guard.fields import ContrastStrength, Plausibility, PositiveShare

LOOK = ("attention of the prompt's last position",)


@dataclass(frozen=True)
class AvisC:
    """Contrast with a branch that keeps blind image tokens only: `(1 + alpha) z - alpha z'` on plausible tokens.

    Woo et al., arXiv 2405.17820. From main's prefill: head-mean attention of the last prompt position to the image
    tokens; the fewest layers whose shares of it add up to gamma; their mean w. Tokens with
    `w < mean(w) + lambda std(w)` are not blind: their input embeddings are 0 in the branch's prompt, chosen once, row
    by row (std of a sample, as released). Models that add image features again in later layers keep those. Published
    alphas: 2.5 for LLaVA and AMBER, 3 for InstructBLIP, 1 in the POPE script; lambda 1, though the parser says 0.99.
    `alpha = 0` is neutral.
    """

    name: ClassVar[str] = "avisc"
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "arXiv 2405.17820"
    cost: ClassVar[str] = "one branch, attention of the prefill's last row observed"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}
    contrast_strength: ClassVar[str] = "alpha"

    alpha: ContrastStrength = 2.5
    beta: Plausibility = 0.1
    gamma: Annotated[PositiveShare, Field(description="share of image attention that layers must reach")] = 0.5
    lam: Annotated[
        float, Field(ge=-100, le=100, allow_inf_nan=False, description="deviations above the mean of a blind token")
    ] = 1.0

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Refuse a prompt without several image tokens."""
        if not bool((gen.prompt.image_mask.sum(-1) > 1).any()):
            raise StrategyRefused("'avisc' needs several image tokens in a prompt: pass an image, or drop 'avisc'.")

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Add a branch with the same inputs."""
        yield Branch(self._key, inside=True)

    @hookimpl
    def attention(self, gen: Generation) -> Iterable[AttentionCapture]:
        """Capture the attention of the last prompt position of main."""
        yield AttentionCapture(LOOK, (0, gen.model.depth), average_heads, when="prefill", depends_on_end=False)

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Edit the embeddings of the branch's prompt."""
        yield HiddenEdit("embedding", self._blank, positions="image", branch=self._key, when="prefill")

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Contrast with the blind branch, on plausible tokens."""
        yield Contrast(self._key, self.alpha)
        yield Plausible(self.beta)

    @property
    def _key(self) -> tuple[object, ...]:
        return ("blind image tokens", self.gamma, self.lam)

    def _blank(self, hidden: Tensor, view: View) -> Tensor:
        if self.name not in view.gen.rows:  # without a cache the prompt runs again: the first choice holds
            attending = sorted(layer for key, layer in view.gen.observations if key == LOOK)
            attention = torch.stack([view.observed(LOOK, layer) for layer in attending], dim=1)
            view.gen.rows.put(self.name, self._select_seeing(attention, view.image))
        seeing = view.gen.rows[self.name]
        return hidden.masked_fill(pad(seeing, (0, hidden.shape[1] - seeing.shape[1]))[..., None], 0)

    def _select_seeing(self, attention: Tensor, image: Tensor) -> Tensor:
        """Return the image tokens that are not blind `[rows, positions]`, from attention `[rows, layers, positions]`."""
        share = attention.sum(-1) / attention.sum((-2, -1))[:, None]
        ordered, order = share.sort(dim=-1, descending=True, stable=True)
        reached = torch.zeros_like(share, dtype=torch.bool)
        reached.scatter_(1, order, ordered.cumsum(-1) - ordered < self.gamma)
        weight = (attention * reached[..., None]).sum(1) / reached.sum(-1, keepdim=True)
        count = image.sum(-1, keepdim=True)
        mean = weight.sum(-1, keepdim=True) / count
        deviation = (((weight - mean) ** 2 * image).sum(-1, keepdim=True) / (count - 1)).sqrt()
        return image & (weight < mean + self.lam * deviation)


def average_heads(probabilities: Tensor, view: View) -> Tensor:
    """Return head-mean attention of the prompt's last position to image tokens `[rows, positions]`, 0 elsewhere."""
    return probabilities[:, :, 0].mean(1) * view.keys
