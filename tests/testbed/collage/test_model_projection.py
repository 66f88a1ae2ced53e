"""The closed form is the ridge regression, through a GELU, as far as the hidden layer is wide enough."""

from __future__ import annotations

import pytest
import torch
from collage_stand_ins import tiny_model

from lvlm_guard.testbed.collage.training.projection import COLOUR, GAIN, RIDGE, fit_projector, word_targets
from lvlm_guard.testbed.collage.world.scenes import CLEAR
from lvlm_guard.testbed.collage.world.splits import scene


def test_the_projector_maps_as_the_regression_does():
    model, _ = tiny_model()
    projector = model.model.multi_modal_projector
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 24, generator=generator).relu()
    targets = features @ torch.randn(24, 48, generator=generator) + 1 + torch.randn(4000, 48, generator=generator)
    explained = fit_projector(projector, features, targets)
    centred, aims = features - features.mean(0), targets - targets.mean(0)
    ridge = torch.linalg.solve(centred.T @ centred + RIDGE * 4 * torch.eye(24), centred.T @ aims)
    expected = targets.mean(0) + GAIN * centred @ ridge
    with torch.no_grad():
        torch.testing.assert_close(projector(features), expected, atol=1e-3, rtol=0)
    assert expected.std() > 0.1
    left = (centred @ ridge - aims).square().sum() / aims.square().sum()
    assert explained == pytest.approx(1 - left.item(), abs=1e-4)


def test_an_image_token_is_aimed_at_the_words_for_what_covers_its_middle():
    _, processor = tiny_model()
    tokenizer = processor.tokenizer
    words = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(1))
    drawn = next(one for one in (scene("train", at, 0, CLEAR) for at in range(50)) if any(g.colour for g in one.groups))
    targets = word_targets(drawn, tokenizer, words, 49, 224)

    def embed(text):
        return words[tokenizer(f" {text}")["input_ids"]].mean(0)

    covered = 0
    for row in range(7):
        for column in range(7):
            over = [
                group
                for group in drawn.groups
                for copy in group.copies
                if copy.top <= 32 * row + 16 < copy.top + copy.side
                and copy.left <= 32 * column + 16 < copy.left + copy.side
            ]
            expected = words.mean(0)
            if over:
                expected = embed(over[0].name) + (COLOUR * embed(over[0].colour) if over[0].colour else 0)
                covered += 1
            torch.testing.assert_close(targets[7 * row + column], expected)
    assert 0 < covered < 49
