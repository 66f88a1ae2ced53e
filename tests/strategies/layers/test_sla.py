"""(1 - gamma) z + gamma mean(z_l) over a window of late layers l."""

from __future__ import annotations

import pytest
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from lvlm_guard_layers import SLA
from twin import Twin


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize(("settings", "layers"), [({}, (2, 3)), ({"gamma": 0.8, "layers": (1 / 3, 2 / 3)}, (1, 2))])
def test_sla(architecture, settings, layers):
    def gold(model, inputs, prefix):
        twin = Twin(model)
        main = twin.next(inputs, prefix)
        gamma = settings.get("gamma", 0.3)
        return (1 - gamma) * main + gamma * sum(twin.lens(layer) for layer in layers) / len(layers), main

    check([SLA(**settings)], gold, architecture)


class TestSLA(BundledContract):
    strategy = SLA(layers=(1 / 3, 2 / 3))
