"""Self-introspective decoding: contrast with the image tokens that get least attention."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from lvlm_guard import (
    AttentionCapture,
    AttentionEdit,
    Branch,
    Contrast,
    Generation,
    Plausible,
    StrategyRefused,
    Term,
    View,
    hookimpl,
)
from lvlm_guard.fields import ContrastStrength, EarlierLayer, Plausibility

UNSEEN = -1e30  # above what masks future positions: a query left with nothing but these still sees no future


@dataclass(frozen=True)
class SID:
    """Contrast with a branch that sees its least attended image tokens only: `(1 + alpha) z - alpha z'`.

    Huo et al., arXiv 2408.02032 (CT2S). In layers i and later every position of the branch attends to the k image
    tokens that had the least head-mean attention of the predicting position in layer i - 1 of the same forward, chosen
    anew for every token; the prompt has what its last position chose. Equal scores go by position. Published for 32
    layers and 576 image tokens, i = 2 and k = 100 are shares here. The released code declares alpha and beta but
    drops them, so its contrast is 0.5 and its greedy mode cuts nothing; the authors' answer, alpha 1, is the default
    and the cut always holds. `alpha = 0` is neutral.
    """

    name: ClassVar[str] = "sid"
    family: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "arXiv 2408.02032"
    cost: ClassVar[str] = "one branch, attention of one layer observed"
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}
    contrast_strength: ClassVar[str] = "alpha"

    alpha: ContrastStrength = 1.0
    beta: Plausibility = 0.1
    layer: Annotated[
        EarlierLayer, Field(description="first masked layer: its number, or a fraction of the depth below 1")
    ] = 2 / 32
    kept: Annotated[float, Field(gt=0, lt=1, description="share of image tokens the branch keeps")] = 100 / 576

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Refuse a prompt without several image tokens, or a decoder of one layer."""
        if gen.model.depth <= 1:
            raise StrategyRefused("'sid' needs two decoder layers or more: drop 'sid'.")
        if not bool((gen.prompt.image_mask.sum(-1) > 1).any()):
            raise StrategyRefused("'sid' needs several image tokens in a prompt: pass an image, or drop 'sid'.")

    @hookimpl
    def branches(self, gen: Generation) -> Iterable[Branch]:
        """Add a branch with the same inputs."""
        yield Branch(self._key, inside=True)

    @hookimpl
    def attention(self, gen: Generation) -> Iterable[AttentionEdit | AttentionCapture]:
        """Choose in one layer, and mask in all later ones."""
        first = min(max(gen.model.layer_number(self.layer), 1), gen.model.depth - 1)

        def mask(scores: Tensor, view: View) -> Tensor:
            unseen = view.fit(view.spread(view.observed(self._key, first - 1)))
            return scores.masked_fill(unseen[:, None, -scores.shape[2] :], UNSEEN)

        yield AttentionCapture(self._key, (first - 1, first), self._unseen, branch=self._key)
        yield AttentionEdit((first, gen.model.depth), mask, queries="all", branch=self._key)

    @hookimpl
    def terms(self, gen: Generation) -> Iterable[Term]:
        """Contrast with the half-blind branch, on plausible tokens."""
        yield Contrast(self._key, self.alpha)
        yield Plausible(self.beta)

    @property
    def _key(self) -> tuple[object, ...]:
        return ("least attended image tokens", self.layer, self.kept)

    def _unseen(self, probabilities: Tensor, view: View) -> Tensor:
        """Return the image tokens that the branch loses `[rows, predicting, keys]`."""
        image: Tensor = view.keys[:, None]
        attended = probabilities.mean(1).masked_fill(~image, 2.0)
        rank = attended.argsort(dim=-1, stable=True).argsort(dim=-1)
        count = (image.sum(-1, keepdim=True) * self.kept).round().clamp_min(1)
        return image & (rank >= count)
