"""Checks that are exact: what they find is wrong whatever the model is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.diagnosis.model.components import Component, Name
from lvlm_guard.diagnosis.model.items import KnownItem
from lvlm_guard.diagnosis.model.measuring import LEAK, BatteryMeasurement
from lvlm_guard.diagnosis.model.structure import Structure
from lvlm_guard.errors import NonFiniteLogits
from lvlm_guard.fitting import Demonstration, encode_prompts
from lvlm_guard.outputs import sequences

NEW_TOKENS = 8
GENERATED = 8
"""Items that answers are generated for, and tokens of each."""


@dataclass(frozen=True)
class Failure:
    """A check that failed.

    Args:
        component: Where.
        size: How far it is off, in the units of `allowed`.
        allowed: What would be right.
    """

    component: Component
    size: float
    allowed: float


@dataclass(frozen=True)
class ExactCheck:
    """An exact check that was made.

    Args:
        name: Its name in files, a key of `CHECKS`.
        sizes: How far each component is off that it looked at, in the units of `allowed`.
        allowed: What would be right.
    """

    name: str
    sizes: Mapping[Component, float]
    allowed: float

    @property
    def greatest(self) -> tuple[Component, float]:
        """The component that is off the farthest, and how far; of several the earliest."""
        ordered = sorted(self.sizes.items(), key=lambda pair: pair[0].order)
        return max(ordered, key=lambda pair: pair[1])

    @property
    def failures(self) -> list[Failure]:
        """Where it failed."""
        return [Failure(component, size, self.allowed) for component, size in self.sizes.items() if size > self.allowed]


CHECKS = ("pixels", "hidden_keys", "image_masks", "text_masks", "sums", "logits", "tokens")
"""All exact checks by name, in the order in which the picture comes through what they look at."""


def list_checks(structure: Structure, batteries: Sequence[BatteryMeasurement], odd: float | None) -> list[ExactCheck]:
    """Return all checks that could be made, as `CHECKS` has them.

    Args:
        structure: What of the model can be measured.
        batteries: What was measured.
        odd: Share of tokens that the model's own settings choose and that are not the likeliest; None where that is not known.
    """
    unequal = dict.fromkeys(structure.unequal, float("inf"))
    checks = (
        ExactCheck("pixels", _find_greatest("pixels", [each.pixels for each in batteries]), 0.0),
        ExactCheck("hidden_keys", _by_layer("attention", [each.leaks for each in batteries]), LEAK),
        ExactCheck("image_masks", _by_layer("image_mass", [each.biases for each in batteries]), 0.0),
        ExactCheck("text_masks", _by_layer("attention", [each.text_biases for each in batteries]), 0.0),
        ExactCheck("sums", _by_layer("residual", [unequal, *(each.sums for each in batteries)]), 1.0),
        ExactCheck("logits", _find_greatest("output", [each.logits for each in batteries]), 1.0),
        ExactCheck("tokens", _find_greatest("decoding", [odd]), 0.0),
    )
    return [check for check in checks if check.sizes]


def list_failures(structure: Structure, batteries: Sequence[BatteryMeasurement], odd: float | None) -> list[Failure]:
    """Return all checks that failed, in causal order; arguments as `list_checks` has them."""
    return sort_failures(list_checks(structure, batteries, odd))


def sort_failures(checks: Sequence[ExactCheck]) -> list[Failure]:
    """Return where checks failed, in causal order."""
    failures = [failure for check in checks for failure in check.failures]
    return sorted(failures, key=lambda failure: failure.component.order)


def _find_greatest(name: Name, values: Sequence[float | None]) -> dict[Component, float]:
    """Return the greatest of the values that are known; nothing where none is."""
    values_measured = [value for value in values if value is not None]
    return {Component(name): max(values_measured)} if values_measured else {}


def _by_layer(name: Name, batteries: Sequence[Mapping[int, float]]) -> dict[Component, float]:
    """Return the greatest value of each layer."""
    layers = sorted({layer for battery in batteries for layer in battery})
    return {Component(name, layer): max(each.get(layer, 0.0) for each in batteries) for layer in layers}


@torch.no_grad()
def find_odd_tokens(model: Any, processor: Any, items: Sequence[KnownItem]) -> float:
    """Return the share of tokens, generated under the model's own settings, that its logits alone do not decide.

    These are tokens that are not the likeliest, and tokens whose logits the settings changed before the choice, as a temperature
    does. Captioned items come first.

    Raises:
        NonFiniteLogits: The model returns NaN.
    """
    chosen_items = sorted(items, key=lambda item: not item.is_caption)[:GENERATED]
    demonstrations = [Demonstration(item.picture, item.prompt, item.answer, "") for item in chosen_items]
    batch = encode_prompts(model, processor, demonstrations)
    outputs = {"output_logits": True, "output_scores": True, "return_dict_in_generate": True}
    with torch.random.fork_rng(devices=_devices(model)):
        torch.manual_seed(0)
        output = model.generate(**batch, max_new_tokens=NEW_TOKENS, num_beams=1, **outputs)
    logits, scores = (torch.stack(each, dim=1).float() for each in (output.logits, output.scores))
    if bool(logits.isnan().any()):
        raise NonFiniteLogits("The model returns NaN on known items: its weights, or its dtype, are broken.")
    tokens = sequences(output)[:, -logits.shape[1] :]
    is_changed = (scores.isfinite() & ~torch.isclose(scores, logits, rtol=1e-4)).any(-1)
    is_odd = is_changed | (tokens != logits.argmax(-1))
    return float(is_odd[_find_unfinished(tokens, model)].float().mean())


def _devices(model: Any) -> list[int]:
    index = model.device.index if model.device.type == "cuda" else None
    return [] if index is None else [index]


def _find_unfinished(chosen: Tensor, model: Any) -> Tensor:
    """Return which tokens come no later than the first end token of their row, bool `[rows, tokens]`."""
    stated = getattr(model.generation_config, "eos_token_id", None)
    ends = [] if stated is None else [stated] if isinstance(stated, int) else list(stated)
    ended = torch.isin(chosen, torch.tensor(ends, dtype=chosen.dtype, device=chosen.device)).long()
    return ended.cumsum(1) - ended == 0
