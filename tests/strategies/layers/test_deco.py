"""z + alpha m z_i on candidates: the inner layer i and candidate with the greatest probability m."""

from __future__ import annotations

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from lvlm_guard_layers import DeCo
from twin import Twin


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize(
    ("settings", "layers"), [({"alpha": 3.0}, (2, 3)), ({"layers": (1 / 3, 2 / 3), "top_p": 0.6, "alpha": 6.0}, (1, 2))]
)
def test_deco(architecture, settings, layers):
    def gold(model, inputs, prefix):
        twin = Twin(model)
        main = twin.next(inputs, prefix)
        candidates, total = [], 0.0
        for token in main.argsort(descending=True)[:20].tolist():
            candidates.append(token)
            total += float(main.softmax(-1)[token])
            if total >= settings.get("top_p", 0.9):
                break
        pairs = {(layer, token): float(twin.lens(layer).softmax(-1)[token]) for layer in layers for token in candidates}
        layer, token = max(pairs, key=pairs.get)
        wanted = torch.full_like(main, -torch.inf)
        corrected = main + settings.get("alpha", 0.6) * pairs[layer, token] * twin.lens(layer)
        wanted[candidates] = corrected[candidates]
        return wanted, main

    check([DeCo(**settings)], gold, architecture)


class TestDeCo(BundledContract):
    strategy = DeCo(layers=(1 / 3, 2 / 3))
