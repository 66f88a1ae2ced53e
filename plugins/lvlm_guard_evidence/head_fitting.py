"""Fit a linear head on image tokens: existence by the sum over tokens, values and places at the tokens that show the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lvlm_guard_evidence.examples import PictureLabels, weigh_presence, weigh_values

STEPS = 600
BATCH = 128
RATE = 0.02
DECAY = 1e-4
"""Weight of the mean square of the weights."""


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """What is fitted: scores are `tokens @ weight.T`, and `bias` is added to what is read off them.

    Args:
        weight: `[names + values, hidden]`.
        bias: `[names + values]`.
    """

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Recorded:
    """The image tokens of pictures, as many of each.

    Args:
        tokens: `[pictures, tokens, hidden]`, in half precision where there are many.
        valid: Which are tokens of the picture, and no filling, bool `[pictures, tokens]`.
        places: Row and column of each as shares of the picture, NaN where unknown `[pictures, tokens, 2]`.
    """

    tokens: Tensor
    valid: Tensor
    places: Tensor

    def first(self, count: int) -> Recorded:
        """Return the first pictures alone."""
        return Recorded(self.tokens[:count], self.valid[:count], self.places[:count])


def stack_tokens(tokens: Sequence[Tensor], places: Sequence[Tensor]) -> Recorded:
    """Return the tokens of pictures `[tokens, hidden]` with their places `[tokens, 2]`, filled up to the most."""
    most = max(len(each) for each in tokens)
    stacked = tokens[0].new_zeros((len(tokens), most, tokens[0].shape[-1]))
    located = torch.full((len(tokens), most, 2), torch.nan)
    valid = torch.zeros(len(tokens), most, dtype=torch.bool)
    for number, (each, where) in enumerate(zip(tokens, places, strict=True)):
        stacked[number, : len(each)], located[number, : len(each)], valid[number, : len(each)] = each, where, True
    return Recorded(stacked, valid, located)


def fit_weights(recorded: Recorded, labels: PictureLabels, *, seed: int = 0, steps: int = STEPS) -> HeadWeights:
    """Fit names and values together, by Adam over batches of pictures.

    Three losses: weighted cross-entropy of existence, where log-sum-exp over the tokens stands for the picture; how much of the
    attention lies in the boxes, where there are some; and cross-entropy of the values at that attention. Weights break company
    and habits of the labels, see `weigh_presence` and `weigh_values`.
    """
    names, values = len(labels.table.names), len(labels.values)
    sample = recorded.tokens[recorded.valid].float()
    mean, spread = sample.mean(0), sample.std(0).clamp(min=1e-6)
    loss = _Loss(recorded, labels, mean, spread)
    draw = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        weight = torch.zeros(names + values, len(mean), requires_grad=True)
        bias = torch.full((names + values,), -1.0, requires_grad=True)
        adam = torch.optim.Adam([weight, bias], lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            chosen = torch.randint(len(recorded.tokens), (min(BATCH, len(recorded.tokens)),), generator=draw)
            adam.zero_grad()
            torch.autograd.backward(loss.compute(weight, bias, chosen))
            adam.step()
            schedule.step()
    return _unstandardise(weight.detach(), bias.detach(), mean, spread, names)


def _unstandardise(weight: Tensor, bias: Tensor, mean: Tensor, spread: Tensor, names: int) -> HeadWeights:
    """Return weights for tokens as they are: a constant of all tokens moves into the bias, also through log-sum-exp."""
    del names  # the same constant for both: attention sums to one, and log-sum-exp shifts with its argument
    plain = weight / spread
    return HeadWeights(plain, bias - plain @ mean)


class _Loss:
    """The loss of some of the pictures."""

    def __init__(self, recorded: Recorded, labels: PictureLabels, mean: Tensor, spread: Tensor) -> None:
        self._recorded, self._labels = recorded, labels
        self._mean, self._spread = mean, spread
        self._presence, self._values = weigh_presence(labels.present), weigh_values(labels.described)
        self._inside = torch.stack(
            [labels.find_tokens(number, places) for number, places in enumerate(recorded.places)]
        )
        self._names = len(labels.table.names)

    def compute(self, weight: Tensor, bias: Tensor, chosen: Tensor) -> Tensor:
        """Return the loss of the chosen pictures."""
        tokens = (self._recorded.tokens[chosen].float() - self._mean) / self._spread
        scores = (tokens @ weight.T).masked_fill(~self._recorded.valid[chosen, :, None], -1e4)
        of_names = scores[..., : self._names].transpose(1, 2)  # [pictures, names, tokens]
        total = of_names.logsumexp(-1)
        loss = self._existence(total + bias[: self._names], chosen) + DECAY * weight.square().sum()
        inside = self._inside[chosen]
        boxed = inside.any(-1)
        if bool(boxed.any()):
            within = of_names.masked_fill(~inside, -1e4).logsumexp(-1)
            loss = loss + 0.5 * (total - within)[boxed].mean()
        return loss + self._attributes(scores, of_names, bias, chosen)

    def _existence(self, odds: Tensor, chosen: Tensor) -> Tensor:
        truth, weights = self._labels.present[chosen].nan_to_num(), self._presence[chosen]
        return binary_cross_entropy_with_logits(odds, truth, weights)

    def _attributes(self, scores: Tensor, of_names: Tensor, bias: Tensor, chosen: Tensor) -> Tensor:
        weights = self._values[chosen]
        picked = weights > 0
        if not bool(picked.any()):
            return scores.new_zeros(())
        looked = of_names.softmax(-1) @ scores[..., self._names :] + bias[self._names :]
        logits, truth = looked[picked], self._labels.described[chosen][picked]
        if self._labels.is_exclusive:
            losses = cross_entropy(logits, truth.argmax(-1), reduction="none")
        else:
            losses = binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(-1)
        return (losses * weights[picked]).mean()
