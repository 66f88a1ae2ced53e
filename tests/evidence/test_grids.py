"""Where image tokens lie: known where the model inputs say, and unknown rather than guessed."""

from __future__ import annotations

import types

import pytest
import torch
from evidence_heads import NAMES
from lvlm_guard_evidence.grids import PictureTokens, find_pictures
from lvlm_guard_evidence.head import EvidenceHead, OddsScale
from lvlm_guard_evidence.names import NamesTable


def config(**more):
    return types.SimpleNamespace(vision_config=types.SimpleNamespace(spatial_merge_size=2, patch_size=4), **more)


def masks(*rows):
    return torch.tensor([[letter == "i" for letter in row] for row in rows])


def find(inputs, image, **more):
    return find_pictures(inputs, config(**more), image)


def test_packed_patches_bring_their_grids():
    inputs = {"image_grid_thw": torch.tensor([[1, 4, 6], [1, 2, 4], [2, 4, 4]])}
    rows = find(inputs, masks("tiiiiiit" + "ii" + "t" * 9, "t" * 10 + "i" * 8 + "t"))
    assert rows == [[PictureTokens(0, 6, 2, 3), PictureTokens(6, 2, 1, 2)], [PictureTokens(0, 8, 0, 2)]]


def test_pictures_of_one_size_fill_a_grid_of_their_shape():
    pixels = torch.zeros(3, 3, 30, 30)
    rows = find({"pixel_values": pixels}, masks("iiiitttttttt", "iiiittttiiii"))
    assert rows == [[PictureTokens(0, 4, 2, 2)], [PictureTokens(0, 4, 2, 2), PictureTokens(4, 4, 2, 2)]]
    wide = find({"pixel_values": torch.zeros(1, 3, 20, 40)}, masks("iiiiiiii"))
    assert wide == [[PictureTokens(0, 8, 2, 4)]]
    odd = find({"pixel_values": torch.zeros(1, 3, 30, 30)}, masks("iiiii"))
    assert odd == [[PictureTokens(0, 5, 0, 0)]]


def test_parts_side_by_side_are_one_picture_of_unknown_shape():
    rows = find({"pixel_values": torch.zeros(2, 3, 30, 30)}, masks("iiiiiiii"))
    assert rows == [[PictureTokens(0, 8)]]


def test_of_tiles_the_whole_picture_comes_first():
    inputs = {"pixel_values": torch.zeros(1, 5, 3, 8, 8)}
    image = masks("i" * 14)
    assert find(inputs, image, image_grid_pinpoints=[[16, 16]]) == [[PictureTokens(0, 14, 2, 2)]]
    assert find(inputs, image) == [[PictureTokens(0, 14)]]
    full = find(inputs, image, image_grid_pinpoints=[[16, 16]], vision_feature_select_strategy="full")
    assert full == [[PictureTokens(0, 14)]]


@pytest.mark.parametrize(
    "inputs", [{}, {"pixel_values": torch.zeros(4, 3)}, {"image_grid_thw": torch.tensor([[1, 8, 8]])}]
)
def test_what_does_not_fit_is_one_picture_of_unknown_shape(inputs):
    assert find(inputs, masks("tiiit", "ttttt")) == [[PictureTokens(0, 3)], []]


def test_without_a_grid_existence_is_read_and_places_are_not():
    head = EvidenceHead(torch.randn(3, 8), torch.zeros(3), NamesTable(NAMES), peaks=torch.zeros(3))
    scores = head.score(torch.randn(6, 8))
    blind, seeing = (head.read(scores, tokens.places()) for tokens in (PictureTokens(0, 6), PictureTokens(0, 6, 2, 3)))
    assert blind.existence("mug") == seeing.existence("mug")
    assert (blind.relation("mug", "left", "spoon"), blind.number("mug")) == (None, None)
    assert seeing.relation("mug", "left", "spoon") == pytest.approx(-seeing.relation("mug", "right", "spoon"))
    assert seeing.relation("mug", "beside", "spoon") is None
    assert seeing.existence("zebra") is None
    assert seeing.attribute("mug", "red") is None


def test_objects_are_counted_by_the_peaks_of_their_scores():
    head = EvidenceHead(torch.eye(1), torch.zeros(1), NamesTable(("mug",)), peaks=torch.tensor([0.5]))
    grid = torch.zeros(5, 5)
    grid[0, 0], grid[4, 4], grid[2, 2], grid[2, 3] = 3.0, 2.0, 0.2, 1.0
    places = PictureTokens(0, 25, 5, 5).places()
    assert head.read(grid.view(25, 1), places).number("mugs") == 3.0


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("gap", [1.0, 16.0, 18.0, 20.0])
def test_odds_of_a_value_keep_their_scale_beyond_single_precision(slope, gap):
    scales = {"attribute": OddsScale(slope, 0.25)}
    head = EvidenceHead(torch.zeros(3, 1), torch.zeros(3), NamesTable(("mug",)), ("red", "green"), scales=scales)
    seen = head.read(torch.tensor([[0.0, gap, 0.0]]), PictureTokens(0, 1).places())
    assert seen.attribute("mug", "red") == pytest.approx(slope * gap + 0.25, abs=1e-4)
    assert seen.attribute("mug", "green") == pytest.approx(-slope * gap + 0.25, abs=1e-4)
