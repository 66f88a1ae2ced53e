"""Everything that is measured on one battery of known items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.items import Encoded, KnownItem, encode, have_one_picture
from lvlm_guard.diagnosis.model.mix import QuestionMix
from lvlm_guard.diagnosis.model.moments import Moments
from lvlm_guard.diagnosis.model.reading import answer, compare_logits, find_lens, read_answers
from lvlm_guard.diagnosis.model.recording import Recording, record
from lvlm_guard.diagnosis.model.structure import Structure

LEAK = 1e-6
"""Attention to what is hidden, from which on it is attended to."""
TOKENS = 256
"""Tokens of true answers whose log-probabilities are looked at, at most."""


@dataclass(frozen=True, eq=False, repr=False)
class BatteryMeasurement:
    """What was measured on one battery.

    Args:
        moments: Mean and variance `[2, dims]` of what each component returned, fp64.
        sums: By layer, how far it is from adding its blocks alone; 1 is what rounding allows.
        leaks: By layer, the greatest attention to padding or to what comes later.
        biases: By layer, the greatest number that a mask adds to scores of image keys that it does not hide, in nats.
        text_biases: The same of all other keys.
        logits: How far logits are from head times normed states; 1 is what rounding allows; None where not computed.
        pixels: Share of the tower's pixels that are not the processor's; None where they cannot be compared.
        log_probability: Of the true answers, the mean; None where not computed.
        missing: What could not be measured, a sentence each.
    """

    moments: Mapping[Component, Tensor]
    sums: Mapping[int, float]
    leaks: Mapping[int, float]
    biases: Mapping[int, float] = field(default_factory=dict)
    text_biases: Mapping[int, float] = field(default_factory=dict)
    logits: float | None = None
    pixels: float | None = None
    log_probability: float | None = None
    missing: tuple[str, ...] = field(default=())


@torch.no_grad()
def measure(
    model: Any,
    processor: Any,
    structure: Structure,
    items: Sequence[KnownItem],
    tokens: Tensor | None = None,
    mix: QuestionMix | None = None,
) -> BatteryMeasurement:
    """Measure one battery.

    Args:
        model: The model.
        processor: Its processor.
        structure: What of it can be measured.
        items: The battery.
        tokens: Which tokens' log-probabilities are compared, int64; None leaves the output out.
        mix: What items are weighed to ask as; None weighs all alike.
    """
    encoded = encode(model, processor, items, mix=mix)
    recording = record(model, structure, encoded)
    moments = {component: sums.stack() for component, sums in recording.moments.items()}
    differing, reasons = _compare_pixels(recording, encoded)
    figures: dict[str, Any] = {}
    lens, reason = find_lens(model, _last(recording), _logits(recording))
    if lens is None:
        reasons.append(reason)
    else:
        answers = read_answers(lens, _last(recording), encoded)
        rounding = compare_logits(lens, _last(recording), _logits(recording))
        figures = {"log_probability": answers.log_probability, "logits": rounding}
        if figures["logits"] is None:
            reasons.append("output: the head has no weights to multiply with, so logits are not computed again.")
        if tokens is not None:
            moments[Component("output")] = Moments.of(answers.features(tokens), answers.weights).stack()
    return BatteryMeasurement(
        moments,
        recording.sums,
        _join_leaks(recording, reasons),
        recording.biases,
        recording.text_biases,
        pixels=differing,
        missing=tuple(reasons),
        **figures,
    )


@torch.no_grad()
def measure_swap(
    model: Any, processor: Any, structure: Structure, items: Sequence[KnownItem], mix: QuestionMix | None = None
) -> float | None:
    """Return how far answers move when each item gets another one's picture, in nats, the mean; None where that cannot be said."""
    if have_one_picture(items):
        return None
    encoded = encode(model, processor, items, mix=mix)
    recording = record(model, structure, encoded)
    lens, _ = find_lens(model, _last(recording), _logits(recording))
    if lens is None:
        return None
    answers = read_answers(lens, _last(recording), encoded)
    return answers.distance(
        answer(model, lens, structure.depth, encode(model, processor, items, swapped=True, mix=mix))
    )


def _join_leaks(recording: Recording, reasons: list[str]) -> dict[int, float]:
    """Return the greatest attention to what is hidden, by layer; where every layer looks ahead, that is how the model reads prompts."""
    ahead, leaks = recording.ahead, recording.leaks
    if ahead and all(size > LEAK for size in ahead.values()):
        reasons.append(
            "masks: every layer reads prompts in both directions, so answers are seen before they are predicted."
        )
        ahead = {}
    return {layer: max(leaks.get(layer, 0.0), ahead.get(layer, 0.0)) for layer in {**leaks, **ahead}}


def _last(recording: Recording) -> Tensor:
    assert recording.last is not None
    return recording.last


def _logits(recording: Recording) -> Tensor:
    assert recording.logits is not None
    return recording.logits


def _compare_pixels(recording: Recording, encoded: Encoded) -> tuple[float | None, list[str]]:
    """Return the share of numbers in which the tower's pixels are not the processor's, or why that cannot be said."""
    if not recording.pixels or not encoded.pixels:
        return None, ["pixels: the module that takes them was not found, so they are not compared."]
    expected = encoded.inputs[encoded.pixels]
    each = expected.numel()
    tower_pixels = torch.cat([pixels.reshape(-1) for pixels in recording.pixels])
    if not each or tower_pixels.numel() % each:
        return None, [
            "pixels: the tower takes them in another form than the processor gives, so they are not compared."
        ]
    differs = tower_pixels.view(-1, each) != expected.reshape(1, -1).to(tower_pixels)
    return float(differs.float().mean()), []


def choose_tokens(encoded: Sequence[Encoded]) -> Tensor:
    """Return the commonest tokens of true answers, int64, in the order of their ids."""
    counts = Counter(token for batch in encoded for token in batch.targets[batch.predicting].tolist())
    return torch.tensor(sorted(token for token, _ in counts.most_common(TOKENS)))
