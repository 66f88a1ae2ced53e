"""Pictures of different numbers of tiles are edited in whatever batch their rows stand, padded or not."""

import pytest
import torch
from PIL import Image, ImageOps

from lvlm_guard import Guard, InputEdit
from lvlm_guard.request.branch_inputs import edit_request
from lvlm_guard.testing import TinyProcessor, tiny
from lvlm_guard.testing.sequences import pictures

TEXT = "<image> w17 w18"


class TilingProcessor(TinyProcessor):
    """Cuts pictures into five tiles, and wide ones into three."""

    def pixels(self, images):
        tiles = [5 if image.width == image.height else 3 for image in images]
        rows = zip(super().pixels(images), tiles, strict=True)
        padded = [torch.cat([row[:count], row[count:] * 0]) for row, count in rows]
        return torch.stack(padded)[:, : max(tiles)]


@pytest.fixture(scope="module")
def guard():
    return Guard(tiny("llava_next")[0], TilingProcessor("llava_next"))


@pytest.fixture
def wide():
    return pictures()[0].resize((60, 30))


@pytest.fixture
def square():
    return pictures()[1].resize((30, 30), Image.Resampling.NEAREST)


def inverted(guard, batch):
    """Return the pixels of a batch after its pictures were edited."""
    edit = InputEdit(picture=lambda picture, _: ImageOps.invert(picture))
    return edit_request(guard._build_request(dict(batch)), edit).inputs["pixel_values"]


def pad_tiles(pixels, tiles):
    return torch.cat([pixels, pixels.new_zeros(len(pixels), tiles - pixels.shape[1], *pixels.shape[2:])], 1)


def test_batches_of_different_numbers_of_tiles_are_joined(guard, wide, square):
    first, second = guard.inputs(images=wide, text=TEXT), guard.inputs(images=square, text=TEXT)
    both = guard.inputs(images=[ImageOps.invert(wide), ImageOps.invert(square)], text=[TEXT] * 2)
    joined = {name: torch.cat([first[name], second[name]]) for name in first if name != "pixel_values"}
    for tiles in (5, 6):
        pixels = [pad_tiles(batch["pixel_values"], tiles) for batch in (first, second)]
        got = inverted(guard, {**joined, "pixel_values": torch.cat(pixels)})
        assert torch.equal(got, pad_tiles(both["pixel_values"], tiles))


def test_a_row_loses_and_gains_empty_tiles(guard, wide, square):
    both = guard.inputs(images=[wide, square], text=[TEXT] * 2)
    wanted = guard.inputs(images=ImageOps.invert(wide), text=TEXT)["pixel_values"]
    row = {name: value[:1].clone() for name, value in both.items()}
    for tiles in (3, 5):
        got = inverted(guard, {**row, "pixel_values": both["pixel_values"][:1, :tiles].clone()})
        assert torch.equal(got, pad_tiles(wanted, tiles))
