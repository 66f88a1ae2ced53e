"""(1 + alpha) z - alpha z' on plausible tokens; in z' the image tokens with w < mean(w) + lambda std(w) are 0."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from gold import OLD
from lvlm_guard_contrastive import AvisC
from twin import Twin


def plausible(main, combined, beta):
    return torch.where(main >= main.max() + math.log(beta), combined, main - 1e4)


def is_blind_key(model, inputs, gamma, lam):
    """Positions of image tokens that are not blind, by lists and sums."""
    twin = Twin(model)
    twin.run(inputs)
    spots = twin.image.nonzero().flatten().tolist()
    rows = [twin.seen[layer][0].mean(0)[twin.prompt - 1, spots].tolist() for layer in range(twin.depth)]
    total = sum(map(sum, rows))
    ordered = sorted(rows, key=sum, reverse=True)
    shares = np.cumsum([sum(row) / total for row in ordered])
    chosen = ordered[: int((shares < gamma).sum()) + 1]
    weights = [statistics.mean(column) for column in zip(*chosen, strict=True)]
    bound = statistics.mean(weights) + lam * statistics.stdev(weights)
    return [spot for spot, weight in zip(spots, weights, strict=True) if weight < bound]


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize(("gamma", "lam"), [(0.5, 1.0), (0.9, 0.2)])
def test_avisc(architecture, gamma, lam):
    blanked = []

    def gold(model, inputs, prefix):
        def blind(hidden):
            hidden = hidden.clone()
            hidden[:, gone] = 0.0
            return hidden

        gone = is_blind_key(model, inputs, gamma, lam)
        blanked.append(len(gone) / int((inputs["input_ids"] == 100).sum()))
        main = Twin(model).next(inputs, prefix)
        return plausible(main, 2.2 * main - 1.2 * Twin(model, embedding=blind).next(inputs, prefix), 0.05), main

    check([AvisC(alpha=1.2, beta=0.05, gamma=gamma, lam=lam)], gold, architecture)
    assert min(blanked) > 0, "no image token went anywhere"
    assert OLD or max(blanked) < 1, "every image token went somewhere"  # versions draw other random weights


def test_avisc_leaves_a_row_without_image_alone():
    image = torch.tensor([[True, True, True, False], [False] * 4])
    attention = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) * image[:, None]
    gone = AvisC(lam=0.0)._select_seeing(attention, image)
    assert 0 < int(gone[0].sum()) < 3
    assert not gone[1].any()


class TestAvisC(BundledContract):
    strategy = AvisC()
