"""What is wrong with a model here: exact checks, the profile of the sound one, knock-out; one verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lvlm_guard import anatomy
from lvlm_guard.diagnosis.model.checks import ExactCheck, Failure, find_odd_tokens, list_checks, sort_failures
from lvlm_guard.diagnosis.model.components import Component, name_together
from lvlm_guard.diagnosis.model.items import BATTERY, KnownItem, check_items, deal
from lvlm_guard.diagnosis.model.judging import FurtherLooks, Observed, judge
from lvlm_guard.diagnosis.model.knockout import KnockoutGain, choose_candidates, choose_items, measure_gains
from lvlm_guard.diagnosis.model.measuring import BatteryMeasurement, measure, measure_swap
from lvlm_guard.diagnosis.model.profile import Profile, list_foreign, name_model
from lvlm_guard.diagnosis.model.structure import Structure, inspect_structure
from lvlm_guard.diagnosis.verdict import Diagnosis
from lvlm_guard.errors import InputError, StrategyRefused
from lvlm_guard.fitting import check_chat_template

LEAST_MASS = 1e-9
"""Attention that a share can be taken of."""
FARTHER = 1.25
"""How much farther components may have to be off, for want of pictures, before a diagnosis says so."""


@dataclass(frozen=True)
class DiagnosisCost:
    """What a diagnosis runs.

    Args:
        forwards: Prefills of one battery of known items or less.
        silenced: Prefills of 16 items with a component silenced, at most.
    """

    forwards: int
    silenced: int

    def __str__(self) -> str:
        silenced = f", and at most {self.silenced} of 16 items with a component silenced" if self.silenced else ""
        return f"{self.forwards} forwards of {BATTERY} items{silenced}"


def estimate_cost(model: Any, items: Sequence[KnownItem], profile: Profile | None) -> DiagnosisCost:
    """Return what a diagnosis is going to run.

    Raises:
        ModelRefused: The model shows no decoder layers.
    """
    batteries = len(_deal(items, profile))
    candidates = len(choose_candidates(inspect_structure(model))) if profile is None else 1
    return DiagnosisCost(batteries + 3, 2 + 2 * candidates)


@torch.no_grad()
def diagnose_model(
    model: Any,
    processor: Any,
    items: Sequence[KnownItem],
    *,
    profile: Profile | None = None,
    model_id: str = "",
    split: str = "",
    track: Callable[..., Any] = iter,
) -> Diagnosis:
    """Say what is wrong with a model, judged by known items.

    Exact checks come first: the tower gets the processor's pixels, layers add their blocks and nothing else, nothing attends to what
    is hidden, masks hide keys or leave their scores alone, logits are the head's, generated tokens are the likeliest. Then the earliest component in causal order is named that
    is farther from the profile than sound batteries are, by three standard deviations. Without a profile, heads and feed-forward
    blocks are silenced one by one, and one is named where true answers become likelier.

    Args:
        model: The model, in eval mode; bit-identical afterwards.
        processor: Its processor.
        items: Known items, with a profile at least a battery of 24.
        profile: Of the sound model: the base of a fine-tune, the full precision of a quantised one.
        model_id: Name of the model in the evidence.
        split: Name of the items there.
        track: Shows progress.

    Raises:
        InputError: Too few items, one without a picture or an answer, or a processor without a chat template.
        StrategyRefused: The profile is of a model of other sizes.
        ModelRefused: The model shows no decoder layers, so nothing of it can be looked at.
        NonFiniteLogits: The model returns NaN.
    """
    check_items(items)
    _check_mode(model)
    check_chat_template(processor)
    structure, batteries = inspect_structure(model), _deal(items, profile)
    tokens, mix = (None, None) if profile is None else (profile.tokens, profile.mix)
    odd = find_odd_tokens(model, processor, batteries[0])
    measured: list[BatteryMeasurement] = []
    checks: list[ExactCheck] = []
    failures: list[Failure] = []
    excused: list[Component] = []
    for battery in track(batteries):
        measured.append(measure(model, processor, structure, battery, tokens, mix))
        _check_profile(profile, measured[0])
        checks = list_checks(structure, measured, odd)
        failures, excused = _excuse(sort_failures(checks), profile)
        if failures:
            break  # what is wrong exactly needs no statistics
    excesses = [0.0 if profile is None else profile.expect_excess(battery) for battery in batteries]
    scores = _score(measured, profile, excesses)
    looks = FurtherLooks(
        silence=_Silencing(model, processor, structure, choose_items(items), track),
        swap=lambda: measure_swap(model, processor, structure, batteries[0], mix),
    )
    observed = Observed(
        failures=failures,
        scores=scores,
        attended=_compare_attention(measured, profile),
        log_probability=_average([each.log_probability for each in measured]),
        profile=profile,
        items=len(measured) * len(batteries[0]),
        partial=[*_list_reasons(structure, measured, profile, excused), *_tell_few_pictures(excesses)],
        checks=checks,
        names=_name_subjects(model_id or name_model(model), split, profile),
    )
    return judge(observed, looks)


@dataclass(frozen=True, eq=False, repr=False)
class _Silencing:
    """Silences components when a judge asks for it."""

    model: Any
    processor: Any
    structure: Structure
    items: Sequence[KnownItem]
    track: Callable[..., Any]

    def __call__(self, components: Sequence[Component] | None = None) -> list[KnockoutGain]:
        """Return what silencing these components does, or all that can be silenced."""
        candidates = choose_candidates(self.structure) if components is None else list(components)
        return measure_gains(self.model, self.processor, self.structure, self.items, candidates, self.track)


def _deal(items: Sequence[KnownItem], profile: Profile | None) -> list[list[KnownItem]]:
    if profile is None and len(items) < BATTERY:
        return [list(items)]
    if len(items) < BATTERY:
        raise InputError(
            f"A model is compared with a profile on at least {BATTERY} known items, got {len(items)}. Pass more."
        )
    if profile is None:
        return deal(items)
    profile.mix.check(items, "the profile's items")
    return deal(items, mix=profile.mix)


def _check_mode(model: Any) -> None:
    """Refuse a model in training mode, whose dropout would look like a fault."""
    if model.training:
        raise InputError("The model is in training mode, where dropout looks like a fault. Call model.eval() first.")
    anatomy.decoder_layers(model)


def _check_profile(profile: Profile | None, measured: BatteryMeasurement) -> None:
    if profile is not None and (foreign := list_foreign(profile, measured)):
        raise StrategyRefused(
            f"The profile is of a model of other sizes: its {foreign[0]} has another shape. Measure one of the sound model of these "
            "sizes: lvlm-guard diagnose profile."
        )


def _excuse(failures: list[Failure], profile: Profile | None) -> tuple[list[Failure], list[Component]]:
    """Leave out checks that the sound model fails too; return the others, and what was left out."""
    expected_failures = set() if profile is None else set(map(Component.parse, profile.failures))
    left = [failure for failure in failures if failure.component not in expected_failures]
    return left, [failure.component for failure in failures if failure.component in expected_failures]


def _score(
    measured: Sequence[BatteryMeasurement], profile: Profile | None, excesses: Sequence[float]
) -> dict[Component, float]:
    """Return how many deviations each component is farther from the profile than is to be expected, the mean over batteries."""
    if profile is None:
        return {}
    shared = [component for component in profile.norms if all(component in each.moments for each in measured)]
    return {
        component: sum(
            profile.norms[component].score(each.moments[component], excess)
            for each, excess in zip(measured, excesses, strict=False)
        )
        / len(measured)
        for component in sorted(shared, key=lambda component: component.order)
    }


def _compare_attention(measured: Sequence[BatteryMeasurement], profile: Profile | None) -> dict[Component, float]:
    """Return how much each layer attends to the image, as a share of the profile's, the mean over heads and batteries."""
    if profile is None:
        return {}
    layers = [component for component in profile.norms if component.name == "image_mass"]
    return {
        component: sum(float(each.moments[component][0].mean()) for each in measured)
        / len(measured)
        / max(float(profile.norms[component].centre[0].mean()), LEAST_MASS)
        for component in layers
        if all(component in each.moments for each in measured)
    }


def _tell_few_pictures(excesses: Sequence[float]) -> list[str]:
    """Return a sentence where items are of so few pictures that components may well be farther off than in the profile."""
    if (farther := math.exp(max(excesses))) < FARTHER:
        return []
    return [
        (
            f"pictures: the items are about fewer pictures than those of the profile, so components are blamed only where they are "
            f"{farther:.1f} times as far off as they would have to be. Pass items about more pictures."
        )
    ]


def _name_subjects(model: str, split: str, profile: Profile | None) -> dict[str, str | None]:
    """Return what the models and the items are called; None where there is none, or nobody said."""
    manifest: Mapping[str, Any] = {} if profile is None else profile.manifest
    names = {"model": model, "split": split}
    return {**names, **{f"sound_{name}": manifest.get(name) for name in names}}


def _average(values: Sequence[float | None]) -> float | None:
    figures = [value for value in values if value is not None]
    return sum(figures) / len(figures) if figures and len(figures) == len(values) else None


def _list_reasons(
    structure: Structure, measured: Sequence[BatteryMeasurement], profile: Profile | None, excused: Sequence[Component]
) -> list[str]:
    """Return what could not be looked at, each once."""
    reasons = [*structure.missing, *(reason for each in measured for reason in each.missing)]
    reasons += [f"{component}: the sound model fails this check too, so it says nothing." for component in excused]
    if profile is None:
        reasons.append(
            "profile: without one, only what fails an exact check is blamed. A component without which true answers are likelier is a "
            "place to look at, for sound models have such components too."
        )
    else:
        unseen = [component for component in profile.norms if component not in measured[0].moments]
        reasons += [
            f"profile: {name} cannot be measured here, and is in the profile." for name in name_together(unseen)
        ]
    return list(dict.fromkeys(reasons))
