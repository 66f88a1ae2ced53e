"""How far components of a battery are from those of sound batteries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_guard.diagnosis.model.components import Component

LEAST_DEVIATION = 0.1
"""The least standard deviation of log-distances: few batteries may be alike by chance."""
SINGLE = 4
"""The power at which a single dimension out of a hundred shows."""
SMALLEST = 1e-3
"""The least spread of a mean over batteries, as a share of the spread of what it is a mean of; and of log-variances."""


@dataclass(frozen=True, eq=False)
class ComponentNorm:
    """What one component does over sound batteries.

    Args:
        centre: Mean over batteries of means and log-variances `[2, dims]`.
        spread: Standard deviation of them over batteries `[2, dims]`.
        usual: Mean of the log-distances of sound batteries, each from all others; logarithms, since distances have a long tail.
        deviation: Standard deviation of these.
        power: As in `distance`.
    """

    centre: Tensor
    spread: Tensor
    usual: float
    deviation: float
    power: int = 2

    def score(self, moments: Tensor, excess: float = 0.0) -> float:
        """Return how many deviations a battery is farther than usual.

        Args:
            moments: As in `BatteryMeasurement`.
            excess: By how much its log-distance is expected to be greater than those of sound batteries were.
        """
        far = _log(distance(_features(moments), self.centre, self.spread, self.power))
        return (far - excess - self.usual) / self.deviation


def fit_norms(batteries: Sequence[Mapping[Component, Tensor]]) -> dict[Component, ComponentNorm]:
    """Return what each component does over sound batteries, those that every battery has."""
    shared = set(batteries[0]).intersection(*batteries)
    return {
        component: _fit([battery[component] for battery in batteries], find_power(component))
        for component in sorted(shared, key=_order)
    }


def _order(component: Component) -> tuple[int, int, int, int]:
    return component.order


def find_power(component: Component) -> int:
    """Return the power of a component's distance: at the output a dimension is a word, and a fault may be in a single one."""
    return SINGLE if component.name == "output" else 2


def _fit(moments: Sequence[Tensor], power: int) -> ComponentNorm:
    features = torch.stack([_features(each) for each in moments])
    floor = _find_floor(moments)
    distances = []
    for left_out in range(len(features)):
        sound_batteries = torch.cat([features[:left_out], features[left_out + 1 :]])
        distances.append(
            _log(distance(features[left_out], sound_batteries.mean(0), sound_batteries.std(0).maximum(floor), power))
        )
    values = torch.tensor(distances, dtype=torch.float64)
    deviation = float(values.std().clamp_min(LEAST_DEVIATION))
    return ComponentNorm(features.mean(0), features.std(0).maximum(floor), float(values.mean()), deviation, power)


def _log(value: float) -> float:
    return math.log(max(value, SMALLEST))


def _find_floor(moments: Sequence[Tensor]) -> Tensor:
    """Return the least spread of means and log-variances `[2, dims]`."""
    within = torch.stack([each[1] for each in moments]).mean(0).sqrt()
    typical = within.square().mean().sqrt()
    least = SMALLEST * torch.maximum(within, typical).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.stack([least, torch.full_like(least, SMALLEST)])


def _features(moments: Tensor) -> Tensor:
    """Return mean and log-variance `[2, dims]` of mean and variance."""
    mean, variance = moments.double()
    typical = variance.mean().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.stack([mean, (variance + SMALLEST**2 * typical).log()])


def distance(features: Tensor, centre: Tensor, spread: Tensor, power: int = 2) -> float:
    """Return how many standard deviations means and log-variances are off, the power mean over dimensions."""
    return float(((features - centre) / spread).abs().pow(power).mean().pow(1 / power))
