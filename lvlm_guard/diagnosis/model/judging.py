"""From what was observed to one verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.diagnosis.model.checks import ExactCheck, Failure
from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.knockout import GAIN, KnockoutGain
from lvlm_guard.diagnosis.model.profile import Profile
from lvlm_guard.diagnosis.verdict import Culprit, Diagnosis

K = 3.0
"""Standard deviations of sound batteries, beyond their mean, from which on a component is abnormal."""
FAR_BELOW = 0.5
"""Share of the profile's divergence under another item's picture, below which the picture has hardly a say; and of its attention to it."""
GIVEN_BACK = 0.5
"""Share of the lost log-probability that silencing a component gives back where it is to blame, rather than a prior."""
DIGITS = 6
"""Significant digits of figures in the evidence."""


@dataclass(frozen=True, eq=False, repr=False)
class Observed:
    """What a verdict is made of.

    Args:
        failures: Exact checks that failed, in causal order.
        scores: By component, in causal order, how many deviations it is farther from the profile than usual.
        attended: By layer's `image_mass`, how much is attended to the image, as a share of what the sound model attends to it.
        log_probability: Of true answers, the mean; None where not measured.
        profile: The profile, or None.
        items: Known items measured.
        partial: What could not be looked at.
        checks: Exact checks that were made.
        names: What the models and the items are called, for the evidence.
    """

    failures: Sequence[Failure]
    scores: Mapping[Component, float]
    attended: Mapping[Component, float]
    log_probability: float | None
    profile: Profile | None
    items: int
    partial: Sequence[str]
    checks: Sequence[ExactCheck] = ()
    names: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def abnormal(self) -> list[Component]:
        """Components beyond `K`, the earliest first."""
        return [component for component, score in self.scores.items() if score > K]

    def looks_away(self, component: Component) -> bool:
        """Whether a component is attention to the image, and so little of it that the picture has no say for that reason alone."""
        return self.attended.get(component, 1.0) < FAR_BELOW

    @property
    def loss(self) -> float:
        """How much less likely true answers are than for the sound model, in nats; 0 where they are not, or nobody knows."""
        usual = None if self.profile is None else self.profile.log_probability
        if usual is None or self.log_probability is None:
            return 0.0
        return max(0.0, usual[0] - self.log_probability)

    @property
    def is_worse(self) -> bool:
        """Whether true answers are far less likely than for the sound model."""
        usual = None if self.profile is None else self.profile.log_probability
        return self.log_probability is not None and usual is not None and self.log_probability < usual[0] - K * usual[1]


@dataclass(frozen=True)
class FurtherLooks:
    """What is looked at only where it decides something, because it takes further forwards.

    Args:
        silence: Silences components, or with none named all that can be, and returns what that does, the greatest gain first.
        swap: Returns how far answers move under another item's picture; None where that cannot be measured.
    """

    silence: Callable[..., list[KnockoutGain]]
    swap: Callable[[], float | None]


@dataclass(frozen=True, eq=False)
class _Case:
    """A verdict with what was looked at further."""

    culprits: list[Culprit]
    gains: Sequence[KnockoutGain] = ()
    swap: float | None = None


def judge(observed: Observed, looks: FurtherLooks) -> Diagnosis:
    """Return the verdict: exact checks, then the profile, then knock-out, then prior, else unknown or none."""
    if observed.failures:
        case = _Case([_blame_check(failure) for failure in observed.failures])
    elif observed.profile is None:
        case = _judge_by_silence(looks)
    else:
        case = _judge_by_profile(observed, observed.profile, looks)
    runner_up = case.culprits[1] if len(case.culprits) > 1 else None
    facts = None if observed.profile is None else observed.profile.facts
    return Diagnosis(case.culprits[0], runner_up, _list_evidence(observed, case), facts, tuple(observed.partial))


def _blame_check(failure: Failure) -> Culprit:
    return failure.component.blame(_finite(failure.size), failure.allowed)


def _judge_by_silence(looks: FurtherLooks) -> _Case:
    """Blame nothing: sound models have components too without which some answers are likelier. The greatest gain comes next."""
    gains = looks.silence()
    suspects = [gain.component.blame(_round(gain.nats), GAIN) for gain in gains if gain.nats > GAIN]
    return _Case([Culprit("unknown", "unknown"), *suspects], gains)


def _judge_by_profile(observed: Observed, profile: Profile, looks: FurtherLooks) -> _Case:
    """Blame the earliest abnormal component; a prior where answers ignore the picture and no component is guilty."""
    abnormal = observed.abnormal
    culprits = [component.blame(_round(observed.scores[component]), K) for component in abnormal]
    if abnormal and (culprits[0].stage not in ("attention", "decoder") or observed.looks_away(abnormal[0])):
        return _Case(culprits)
    if not culprits and not observed.is_worse:
        top = max(observed.scores.values(), default=None)
        return _Case([Culprit("none", "none", score=None if top is None else _round(top), threshold=K)])
    swap = looks.swap()
    if swap is None or profile.swap is None or swap >= FAR_BELOW * profile.swap[0]:
        return _Case(culprits or [Culprit("unknown", "unknown", threshold=K)], swap=swap)
    gains = looks.silence(abnormal[:1]) if abnormal and culprits[0].stage == "decoder" else []
    if gains and gains[0].nats > max(GAIN, GIVEN_BACK * observed.loss):
        return _Case(culprits, gains, swap)
    prior = Culprit("prior", "prior", score=_round(swap), threshold=_round(FAR_BELOW * profile.swap[0]))
    return _Case([prior, *culprits], gains, swap)


def _list_evidence(observed: Observed, case: _Case) -> dict[str, Any]:
    """Return the figures behind a verdict, as plain values."""
    profile, usual = observed.profile, None if observed.profile is None else observed.profile.log_probability
    pictures = None if profile is None else profile.swap
    failed = {failure.component for failure in observed.failures}
    return {
        **observed.names,
        "items": observed.items,
        "k": K,
        "checks": {check.name: _describe_check(check, failed) for check in observed.checks},
        "failed_checks": {failure.component.key: _finite(failure.size) for failure in observed.failures},
        "scores": {component.key: _round(score) for component, score in observed.scores.items()},
        "attended": {component.key: _round(share) for component, share in observed.attended.items()},
        "swap_divergence": None if case.swap is None else _round(case.swap),
        "sound_swap_divergence": None if pictures is None else _round(pictures[0]),
        "log_probability": None if observed.log_probability is None else _round(observed.log_probability),
        "sound_log_probability": None if usual is None else _round(usual[0]),
        "knock_out": {gain.component.key: {"gain": _round(gain.nats), "way": gain.way} for gain in case.gains},
    }


def _describe_check(check: ExactCheck, failed: Collection[Component]) -> dict[str, Any]:
    """Return how far off what it looked at is at most, where, and what of that counts as a failure."""
    component, size = check.greatest
    return {
        "size": _finite(size),
        "allowed": check.allowed,
        "at": component.key,
        "failed": [failure.component.key for failure in check.failures if failure.component in failed],
    }


def _finite(value: float) -> float | None:
    return _round(value) if math.isfinite(value) else None


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
