"""Moments and distances against numbers written out."""

from __future__ import annotations

import pytest
import torch

from lvlm_guard.diagnosis.model.components import Component
from lvlm_guard.diagnosis.model.moments import Moments
from lvlm_guard.diagnosis.model.scoring import distance, fit_norms


def test_moments_of_parts_are_those_of_the_whole():
    torch.manual_seed(0)
    vectors, weights = torch.randn(5, 7, 3), torch.rand(5, 7)
    whole = Moments.of(vectors, weights)
    joined = Moments.of(vectors[:2], weights[:2]) + Moments.of(vectors[2:], weights[2:])
    flat, each = vectors.reshape(-1, 3).double(), weights.reshape(-1, 1).double()
    mean = (flat * each).sum(0) / each.sum()
    variance = ((flat - mean).square() * each).sum(0) / each.sum()
    for moments in (whole, joined):
        assert torch.allclose(moments.mean, mean)
        assert torch.allclose(moments.variance, variance)
    assert float((Moments.of(vectors).mean - mean).abs().max()) > 1e-3, "no power: weights do nothing"


def test_a_distance_counts_standard_deviations():
    features, centre = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert distance(features, centre, torch.full((2, 2), 0.5)) == pytest.approx(3.0)


def batteries(count, shift=0.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    head, mlp = Component("head", 0, 1), Component("mlp", 0)
    return [
        {
            component: Moments.of(torch.randn(200, 16, generator=draw) + shift * (component == head)).stack()
            for component in (head, mlp)
        }
        for _ in range(count)
    ]


def test_sound_batteries_stay_below_the_threshold_and_shifted_ones_do_not():
    norms = fit_norms(batteries(26))
    assert [component.key for component in norms] == ["head.0.1", "mlp.0"]
    sound = [norms[component].score(value) for each in batteries(40, seed=1) for component, value in each.items()]
    assert max(sound) < 3.5
    assert sum(score > 3.0 for score in sound) <= 1
    shifted = batteries(10, shift=0.3, seed=2)
    assert min(norms[Component("head", 0, 1)].score(each[Component("head", 0, 1)]) for each in shifted) > 3.0
    assert max(norms[Component("mlp", 0)].score(each[Component("mlp", 0)]) for each in shifted) < 3.0


def test_a_smaller_variance_shows_where_means_are_equal():
    draw = torch.Generator().manual_seed(5)
    norms = fit_norms(batteries(26))
    narrow = Moments.of(0.5 * torch.randn(200, 16, generator=draw)).stack()
    assert norms[Component("mlp", 0)].score(narrow) > 3.0


@pytest.mark.parametrize("key", ["pixels", "patches", "tower.3", "image_mass.0", "head.2.1", "output"])
def test_components_are_read_from_their_keys(key):
    assert Component.parse(key).key == key


def test_components_come_in_causal_order():
    keys = [
        "output",
        "mlp.0",
        "head.1.0",
        "head.0.1",
        "head.0.0",
        "projector",
        "tower.1",
        "tower.0",
        "pixels",
        "image_mass.0",
    ]
    ordered = sorted(map(Component.parse, keys), key=lambda component: component.order)
    assert [component.key for component in ordered] == [
        "pixels", "tower.0", "tower.1", "projector", "image_mass.0", "head.0.0", "head.0.1", "mlp.0", "head.1.0", "output",
    ]  # fmt: skip
