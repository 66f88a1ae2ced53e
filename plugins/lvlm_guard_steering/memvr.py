"""Memory-space visual retracing: inject the image again, once, where a layer is unsure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from lvlm_guard import Generation, HiddenEdit, Readout, StrategyRefused, View, hookimpl
from lvlm_guard.fields import LayerRange, Share

BEST = 10
IMAGE, OPEN = "memvr image", "memvr open"


@dataclass(frozen=True)
class MemVR:
    """Mix the image into a feed-forward: `(1 - ratio) FFN(x) + ratio s (x V^T) V`, V the embedded image tokens.

    Zou et al., arXiv 2410.03577, after the released code. After each layer in `layers` (published: 5 < l < 16 of 32, counted from 0),
    uncertainty is the entropy of the ten best next-token logits over ln 10; the first layer above `threshold` triggers
    the feed-forward of the next one, once per forward, for each row and predicting position; the prompt follows its
    last position. s gives the retraced part the mean absolute value of `FFN(x)`; the released code's own scalings of V
    cancel against it. As there, no activation stands between the two products, although the paper draws one. The
    released code sums the entropy over the batch. Published ratios: 0.12 (MME), 0.31 (CHAIR). `ratio = 0` is neutral.
    """

    name: ClassVar[str] = "memvr"
    family: ClassVar[str] = "steering"
    paper: ClassVar[str] = "arXiv 2410.03577"
    cost: ClassVar[str] = "a head product after each layer in the range"
    neutral: ClassVar[dict[str, float]] = {"ratio": 0.0}

    ratio: Annotated[Share, Field(description="share of the retraced image")] = 0.12
    threshold: Annotated[Share, Field(description="uncertainty that triggers (theta)")] = 0.75
    layers: LayerRange = (6 / 32, 16 / 32)

    @hookimpl
    def start(self, gen: Generation) -> None:
        """Refuse a prompt without an image, and a range in which no layer can trigger the next."""
        if not bool(gen.prompt.image_mask.any()):
            raise StrategyRefused("'memvr' needs image tokens in the prompt: pass an image, or drop 'memvr'.")
        if not self._outputs(gen):
            raise StrategyRefused(
                f"'memvr' needs a layer that another one of {gen.model.depth} follows: change layers={self.layers}, which has none."
            )

    @hookimpl
    def readouts(self, gen: Generation) -> Iterable[Readout]:
        """Read each layer that may trigger."""
        yield Readout(tuple(self._outputs(gen)), online=True)

    @hookimpl
    def hidden(self, gen: Generation) -> Iterable[HiddenEdit]:
        """Keep the image, and mix it in after the layer that triggers."""
        outputs = self._outputs(gen)
        yield HiddenEdit("embedding", _remember, positions="image", when="prefill")
        yield HiddenEdit("mlp", self._retrace, (outputs.start, outputs.stop))

    def _outputs(self, gen: Generation) -> range:
        """Return the numbers of the outputs that may trigger, which are the indices of the layers that follow."""
        start, stop = (gen.model.layer_number(layer) + 1 for layer in self.layers)
        return range(start, min(max(stop, start + 1), gen.model.depth))

    def _retrace(self, output: Tensor, view: View) -> Tensor:
        unsure = _uncertainty(view.readout(view.layer)) > self.threshold
        is_first = view.layer == self._outputs(view.gen).start
        untriggered = unsure.new_ones(unsure.shape) if is_first else view.gen.state[OPEN].to(unsure.device)
        view.gen.state[OPEN] = untriggered & ~unsure
        assert view.input is not None
        image: Tensor = view.gen.rows[IMAGE].to(output.device)
        retraced = view.input.float() @ image.mT @ image
        size = retraced.abs().mean(-1, keepdim=True)
        scale = output.float().abs().mean(-1, keepdim=True) / size.clamp_min(1e-12)
        mixed = (1 - self.ratio) * output + self.ratio * scale * retraced
        return mixed.where(view.spread((untriggered & unsure)[..., None]) & (size > 0), output)


def _remember(hidden: Tensor, view: View) -> Tensor:
    """Keep the embedded image of each row; other positions are 0 and so add nothing to the products."""
    view.gen.rows.put(IMAGE, hidden.float() * view.positions[..., None])
    return hidden


def _uncertainty(logits: Tensor) -> Tensor:
    """Return the entropy of the best logits over its maximum `[rows, predicting]`."""
    best = logits.float().topk(BEST, dim=-1).values.log_softmax(-1)
    return -(best.exp() * best).sum(-1) / math.log(BEST)
