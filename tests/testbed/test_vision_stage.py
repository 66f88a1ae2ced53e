"""Labels of the vision tower's training, and the loss of reading places."""

from __future__ import annotations

import math

import pytest
import torch

from lvlm_guard.testbed.architectures.picture import ACROSS
from lvlm_guard.testbed.training.vision_stage import NO_COLOUR, PATCHES, clear_patches, labels, place_loss
from lvlm_guard.testbed.world.habits import BACKGROUNDS, CATEGORIES, COLOUR_NAMES
from lvlm_guard.testbed.world.scenes import scenes


def telling(row: torch.Tensor, column: torch.Tensor, sure: float) -> torch.Tensor:
    """Logits that name this row and column for every patch."""
    one_hot = torch.nn.functional.one_hot
    return torch.cat((one_hot(row, ACROSS), one_hot(column, ACROSS)), dim=-1).float()[None] * sure


def test_place_loss_is_nothing_for_who_knows_and_chance_for_who_does_not() -> None:
    row, column = torch.arange(PATCHES) // ACROSS, torch.arange(PATCHES) % ACROSS
    assert place_loss(telling(row, column, 50.0)).item() == pytest.approx(0, abs=1e-6)
    assert place_loss(torch.zeros(3, PATCHES, 2 * ACROSS)).item() == pytest.approx(2 * math.log(ACROSS))
    assert place_loss(telling(column, row, 50.0)).item() > 10


def test_place_loss_counts_row_and_column_each() -> None:
    row, column = torch.arange(PATCHES) // ACROSS, torch.arange(PATCHES) % ACROSS
    half = telling(row, column, 50.0)
    half[..., ACROSS:] = 0
    assert place_loss(half).item() == pytest.approx(math.log(ACROSS), abs=1e-5)


def test_labels_say_what_is_where() -> None:
    batch = scenes("flat", 5, seed=3)
    truth = labels(batch)
    for at, one in enumerate(batch):
        assert truth.background[at] == BACKGROUNDS.index(one.background)
        assert truth.contents[at].sum() == len(one.objects)
        grid = truth.colour[at].view(ACROSS, ACROSS)
        for thing in one.objects:
            patch = tuple(2 * where for where in thing.cell)
            assert grid[patch] == COLOUR_NAMES.index(thing.colour)
            assert truth.category[at].view(ACROSS, ACROSS, -1)[patch].argmax() == CATEGORIES.index(thing.category)
        assert (grid != NO_COLOUR).sum() == 4 * len(one.objects)
        assert clear_patches(batch)[at].sum() <= 4 * len(one.objects)
