"""The profile of a sound model: what each component does on known items, as an artefact."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lvlm_guard
from lvlm_guard.diagnosis.model.checks import find_odd_tokens, list_failures
from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.items import BATTERY, KnownItem, count_effective, count_pictures, deal, encode
from lvlm_guard.diagnosis.model.measuring import BatteryMeasurement, choose_tokens, measure, measure_swap
from lvlm_guard.diagnosis.model.mix import QuestionMix
from lvlm_guard.diagnosis.model.scoring import ComponentNorm, find_power, fit_norms
from lvlm_guard.diagnosis.model.structure import inspect_structure
from lvlm_guard.diagnosis.verdict import ProfileFacts
from lvlm_guard.errors import InputError
from lvlm_guard.fitting import Track
from lvlm_guard.strategy.artefacts import Artefact, describe_model

KIND = "profile"
LEAST = 600
"""Known items that a profile needs."""
LEAST_PICTURES = 2 * BATTERY
"""Pictures that they are about, at least."""
SWAPPED = 8
"""Batteries whose pictures are swapped."""


@dataclass(frozen=True, eq=False)
class Profile:
    """What each component of a sound model does on known items.

    Args:
        norms: What each component does over batteries.
        tokens: Tokens whose log-probabilities are compared, int64.
        swap: Mean and standard deviation over batteries of the divergence under another item's picture; None where not measured.
        log_probability: The same of the log-probability of true answers.
        failures: Components whose exact checks the sound model fails, by key.
        mix: What its items ask; other batteries are weighed to ask alike.
        pictures: How many pictures there were, and in a battery, on average.
        facts: What a verdict says of it.
        manifest: Further facts: the model, the items.
    """

    norms: Mapping[Component, ComponentNorm]
    tokens: Tensor
    swap: tuple[float, float] | None
    log_probability: tuple[float, float] | None
    failures: tuple[str, ...]
    mix: QuestionMix
    pictures: tuple[int, float]
    facts: ProfileFacts
    manifest: Mapping[str, Any]

    def expect_excess(self, items: Sequence[KnownItem]) -> float:
        """Return by how much log-distances of a battery are expected to be greater than those that the norms were made of.

        Batteries of the profile share its pictures: each of `n` of them in a battery, of `P` in all, is in the others too, so that
        their means differ by less, `1 / n - 1 / P`, than the mean of `m` new pictures differs from theirs, `1 / m + 1 / P`. It is
        never below 0: many pictures are no reason to expect less.
        """
        total, within = self.pictures
        expected = 1 / count_effective(items) + 1 / total
        return max(0.0, math.log(expected / (1 / within - 1 / total)) / 2)

    def save(self, path: str | Path) -> None:
        """Write it as an artefact.

        Raises:
            InputError: It cannot be written; `path` is as it was.
        """
        Artefact(KIND, _list_tensors(self.norms, self.tokens), self.manifest).save(path)

    @classmethod
    def load(cls, path: str | Path, model: Any) -> Profile:
        """Read a profile, and check that it is of a model with the same layers and sizes; weights may differ.

        Raises:
            InputError: No such file, or one that is no profile.
            StrategyRefused: It is of another model.
        """
        artefact = Artefact.load(path, KIND, model.config)
        try:
            return _build(artefact.tensors, artefact.manifest)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{path} is a profile that this version cannot read: {type(error).__name__}: {error}. Measure the sound model "
                "again: lvlm-guard diagnose profile."
            ) from error


@torch.no_grad()
def measure_profile(
    model: Any, processor: Any, items: Sequence[KnownItem], *, model_id: str = "", split: str = "", track: Track = iter
) -> Profile:
    """Measure a sound model on known items.

    Args:
        model: The model, in eval mode. It is taken to be sound: its exact checks are not made.
        processor: Its processor.
        items: At least 600 known items.
        model_id: Name of the model in the manifest.
        split: Name of the items in the manifest.
        track: Shows progress over batteries.

    Raises:
        InputError: Fewer items, or of too few pictures.
        ModelRefused: The model shows no decoder layers.
    """
    if len(items) < LEAST:
        raise InputError(f"A profile needs at least {LEAST} known items, got {len(items)}. Pass more.")
    if (pictures := count_pictures(items)) < LEAST_PICTURES:
        raise InputError(
            f"A profile needs known items about at least {LEAST_PICTURES} pictures, these are about {pictures}. Pass items about more."
        )
    mix = QuestionMix.of(items, BATTERY)
    batteries, structure = deal(items, mix=mix), inspect_structure(model)
    tokens = choose_answer_tokens(model, processor, batteries)
    measured: list[BatteryMeasurement] = []
    swaps: list[float | None] = []
    for battery in track(batteries):
        measured.append(measure(model, processor, structure, battery, tokens, mix))
        if len(swaps) < SWAPPED:
            swaps.append(measure_swap(model, processor, structure, battery, mix))
    failures = list_failures(structure, measured, find_odd_tokens(model, processor, batteries[0]))
    manifest = {
        "model": model_id or name_model(model),
        **describe_model(model),
        "split": split,
        **describe_items(items, batteries, mix),
        "failures": [failure.component.key for failure in failures],
        "lvlm_guard": lvlm_guard.__version__,
    }
    return build_profile(measured, swaps, tokens, manifest)


def name_model(model: Any) -> str:
    """Return what a model is called where nobody named it."""
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def choose_answer_tokens(model: Any, processor: Any, batteries: Sequence[Sequence[KnownItem]]) -> Tensor:
    """Return the tokens whose log-probabilities are compared, int64."""
    return choose_tokens([encode(model, processor, battery) for battery in batteries[: LEAST // BATTERY]])


def build_profile(
    measured: Sequence[BatteryMeasurement], swaps: Sequence[float | None], tokens: Tensor, manifest: Mapping[str, Any]
) -> Profile:
    """Return the profile of measured batteries.

    Args:
        measured: What was measured on each battery.
        swaps: Divergences under another item's picture, of some batteries.
        tokens: Tokens whose log-probabilities were compared.
        manifest: Further facts.
    """
    norms = fit_norms([each.moments for each in measured])
    facts = {
        "items": len(measured) * BATTERY,
        "batteries": len(measured),
        "components": [component.key for component in norms],
        "swap": _summarise(swaps),
        "log_probability": _summarise([each.log_probability for each in measured]),
    }
    return _build(_list_tensors(norms, tokens), {**manifest, **facts})


def describe_items(
    items: Sequence[KnownItem], batteries: Sequence[Sequence[KnownItem]], mix: QuestionMix
) -> dict[str, Any]:
    """Return what a manifest says of the items of a profile: their hash, what they ask, and about how many pictures."""
    within = sum(map(count_effective, batteries)) / len(batteries)
    return {"items_hash": hash_items(items), "mix": mix.to_dict(), "pictures": [count_pictures(items), within]}


def hash_items(items: Sequence[KnownItem]) -> str:
    """Return a hash of the prompts and true answers, in their order."""
    texts = json.dumps([[item.prompt, item.answer, item.kind] for item in items])
    return hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()


def _summarise(values: Sequence[float | None]) -> list[float] | None:
    """Return mean and standard deviation; None where a value is missing."""
    figures = [value for value in values if value is not None]
    if len(figures) < len(values):
        return None
    tensor = torch.tensor(figures, dtype=torch.float64)
    return [float(tensor.mean()), float(tensor.std())]


def _list_tensors(norms: Mapping[Component, ComponentNorm], tokens: Tensor) -> dict[str, Tensor]:
    tensors = {"tokens": tokens.long()}
    for component, norm in norms.items():
        tensors[f"{component.key}/centre"] = norm.centre.float()
        tensors[f"{component.key}/spread"] = norm.spread.float()
        tensors[f"{component.key}/distance"] = torch.tensor([norm.usual, norm.deviation], dtype=torch.float32)
    return tensors


def _build(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> Profile:
    norms = {}
    for key in manifest["components"]:
        usual, deviation = tensors[f"{key}/distance"].tolist()
        centre, spread = (tensors[f"{key}/{name}"].double() for name in ("centre", "spread"))
        component = Component.parse(key)
        norms[component] = ComponentNorm(centre, spread, usual, deviation, find_power(component))
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    facts = ProfileFacts(digest.hexdigest(), int(manifest["items"]), int(manifest["batteries"]))
    total, within = manifest["pictures"]
    pair = {name: manifest[name] and (manifest[name][0], manifest[name][1]) for name in ("swap", "log_probability")}
    return Profile(
        norms,
        tensors["tokens"],
        failures=tuple(manifest["failures"]),
        mix=QuestionMix.from_dict(manifest["mix"]),
        pictures=(int(total), float(within)),
        facts=facts,
        manifest=manifest,
        **pair,
    )


def list_foreign(profile: Profile, measured: BatteryMeasurement) -> list[Component]:
    """Return the components that the profile knows in another shape."""
    return [
        component
        for component, norm in profile.norms.items()
        if component in measured.moments and measured.moments[component].shape != norm.centre.shape
    ]
