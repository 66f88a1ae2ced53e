"""(1 + alpha) z - alpha z' on plausible tokens; z' sees only the k image tokens that got least attention in layer i - 1."""

from __future__ import annotations

import math

import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from lvlm_guard_contrastive import SID
from twin import Twin


def plausible(main, combined, beta):
    return torch.where(main >= main.max() + math.log(beta), combined, main - 1e4)


def least_attended(model, inputs, prefix, kept, first=1):
    def cut(layer, scores):
        if layer < first:
            return scores
        scores = scores.clone()
        seen = twin.seen[first - 1].mean(1)[0]
        spots = twin.image.nonzero().flatten().tolist()
        for query in range(scores.shape[2]):
            chooser = seen[max(query, twin.prompt - 1)].tolist()
            ranked = sorted(spots, key=lambda spot: chooser[spot])
            scores[:, :, query, ranked[max(1, round(kept * len(spots))) :]] = -1e30
        return scores

    twin = Twin(model, scores=cut)
    return twin.next(inputs, prefix)


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize(("layer", "kept", "beta"), [(2 / 32, 100 / 576, 0.1), (0.67, 0.5, 0.02)])
def test_sid(architecture, layer, kept, beta):
    def gold(model, inputs, prefix):
        main = Twin(model).next(inputs, prefix)
        branch = least_attended(model, inputs, prefix, kept, first=2 if layer > 0.5 else 1)
        return plausible(main, 1.8 * main - 0.8 * branch, beta), main

    check([SID(alpha=0.8, beta=beta, layer=layer, kept=kept)], gold, architecture)


def test_sid_settles_equal_scores_by_position():
    class Now:
        keys = torch.tensor([[False, True, True, True, True, False]])

    unseen = SID(kept=0.5)._unseen(torch.full((1, 2, 3, 6), 1 / 6), Now())
    assert unseen.tolist() == [[[False, False, False, True, True, False]] * 3]


def test_sid_counts_each_rows_own_image_tokens():
    class Now:
        keys = torch.tensor([[True] * 10, [True] * 4 + [False] * 6, [False] * 10])

    unseen = SID(kept=0.3)._unseen(torch.rand(3, 2, 1, 10, generator=torch.Generator().manual_seed(0)), Now())
    assert (Now.keys[:, None] & ~unseen).sum(-1).flatten().tolist() == [3, 1, 0]


class TestSID(BundledContract):
    strategy = SID()
