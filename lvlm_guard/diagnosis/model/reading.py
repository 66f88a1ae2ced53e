"""Logits of true answers: the last layer of a prefill, read through the model's own norm and head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lvlm_guard import HiddenEdit, View, hookimpl
from lvlm_guard.diagnosis.model.items import Encoded
from lvlm_guard.diagnosis.model.recording import run_prefill
from lvlm_guard.errors import ModelRefused
from lvlm_guard.forward.interventions.readouts import Lens

LOGITS_TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2
"""How far logits computed again may be from the model's own, as a share of the greatest."""


@dataclass(frozen=True, eq=False, repr=False)
class Answers:
    """What a model says at every position that predicts a true answer.

    Args:
        logits: fp32 `[positions, vocab]`.
        targets: The true token of each, int64 `[positions]`.
        weights: What each counts, `[positions]`: those of an item sum up to its weight.
    """

    logits: Tensor
    targets: Tensor
    weights: Tensor

    @property
    def log_probability(self) -> float:
        """Mean over items of the mean log-probability of their true tokens."""
        chosen = self.logits.log_softmax(-1).gather(1, self.targets[:, None])[:, 0]
        return float((chosen * self.weights).sum() / self.weights.sum())

    def distance(self, answers: Answers) -> float:
        """Jensen-Shannon divergence to other answers to the same items, the mean over items, in nats."""
        first, second = self.logits.log_softmax(-1), answers.logits.log_softmax(-1)
        middle = torch.logaddexp(first, second) - torch.log(torch.tensor(2.0))
        both = sum((each.exp() * (each - middle)).sum(-1) for each in (first, second)) / 2
        return float((both * self.weights).sum() / self.weights.sum())

    def features(self, tokens: Tensor) -> Tensor:
        """Return what is compared: log-probabilities of some tokens, and the margin of the true one `[positions, tokens + 1]`."""
        chosen = self.logits.log_softmax(-1)
        true = chosen.gather(1, self.targets[:, None])
        runner_up = chosen.scatter(1, self.targets[:, None], -torch.inf).amax(1, keepdim=True)
        return torch.cat([chosen[:, tokens.to(chosen.device)], true - runner_up], dim=1)


def read_answers(lens: Lens, last: Tensor, encoded: Encoded) -> Answers:
    """Read what the last layer returned at the last positions `[rows, window, hidden]`.

    Args:
        lens: The model's norm and head.
        last: The states.
        encoded: The batch.
    """
    window = last.shape[1]
    predicting = encoded.predicting[:, -window:].to(last.device)
    with torch.no_grad():
        logits = lens.logits([last[predicting][:, None]], final_norm=True)[0, :, 0].float()
    targets = encoded.targets[:, -window:].to(last.device)[predicting]
    return Answers(logits, targets, encoded.weigh_positions(window, last.device)[predicting])


def answer(model: Any, lens: Lens, depth: int, encoded: Encoded, *strategies: Any) -> Answers:
    """Run a batch under strategies, and read its answers."""
    watch = LastLayer(depth, encoded.window)
    run_prefill(model, encoded, *strategies, watch)
    return read_answers(lens, watch.states[-1], encoded)


@dataclass(frozen=True, eq=False, repr=False)
class LastLayer:
    """Keeps what the last layer returns at the last positions.

    Args:
        depth: Layers of the decoder.
        window: How many positions.
        states: What it returned, forward after forward.
    """

    name: ClassVar[str] = "last_layer"

    depth: int
    window: int
    states: Any = field(default_factory=list)

    @hookimpl
    def hidden(self) -> Iterable[HiddenEdit]:
        """Watch the last layer."""
        yield HiddenEdit("residual", self._keep, (self.depth - 1, self.depth), when="prefill", observes=True)

    def _keep(self, hidden: Tensor, view: View) -> Tensor:  # noqa: ARG002 - as edits are called
        self.states.append(hidden[:, -self.window :])
        return hidden


@torch.no_grad()
def find_lens(model: Any, last: Tensor, logits: Tensor) -> tuple[Lens | None, str]:
    """Return what reads the last layer as the model does, or why nothing does."""
    try:
        lens = Lens(model, frozenset())
        if not lens.is_checked:
            lens.check(last[:, -1:], logits[:, None])
    except ModelRefused as error:
        return None, f"output: {error}"
    return lens, ""


@torch.no_grad()
def compare_logits(lens: Lens, last: Tensor, logits: Tensor) -> float | None:
    """Return how far the model's logits are from its head's weights times its normed states, in units of what rounding allows.

    Hooks and whatever else stands round the head are left out of the product, so that they show. None where the head has no
    weights to multiply with, as a quantised one.
    """
    head, weight = lens.head, getattr(lens.head, "weight", None)
    if not isinstance(head, nn.Linear) or weight is None or not weight.is_floating_point():
        return None
    product = linear(lens.path.prepare(last[:, -1:], final_norm=True), weight, head.bias)[:, 0]
    again = lens.scale(product).float().to(logits.device)
    counts = logits.isfinite() & again.isfinite()
    size = logits[counts].abs().max().clamp_min(1e-6)
    tolerance = LOGITS_TOLERANCE if weight.dtype == torch.float32 else HALF_TOLERANCE
    return float((again - logits)[counts].abs().max() / size / tolerance)
