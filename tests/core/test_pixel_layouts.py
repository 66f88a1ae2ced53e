"""In every layout of pixels, a row gets the same edits alone and in any batch: one generator for each image, nothing for padding."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import pad

from lvlm_guard import Branch, StrategyRefused
from lvlm_guard.request import images
from lvlm_guard.request.branch_inputs import build_branch_inputs
from lvlm_guard.request.requests import Request
from lvlm_guard.testing.tiny import IMAGE_TOKEN
from lvlm_guard.testing.zoo.naming import NamedTokens

NAMELESS = NamedTokens({}, {})
DRAW = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(shape, generator=DRAW)


def noise(pixels, generator):
    return pixels + torch.randn(pixels.shape, generator=generator)


def config(**vision):
    text = SimpleNamespace(pad_token_id=0, eos_token_id=None, bos_token_id=1)
    vision = SimpleNamespace(**{"temporal_patch_size": 1, "in_channels": 3, **vision})
    return SimpleNamespace(
        image_token_id=IMAGE_TOKEN, vision_config=vision, is_encoder_decoder=False, get_text_config=lambda **_: text
    )


def edit(rows, inputs, processor=None, **vision):
    """The edited pixels of a request whose rows have so many placeholders for each of their images."""
    prompts = [[1] + [token for image in row for token in [*[IMAGE_TOKEN] * image, 9]] for row in rows]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    request = Request({"input_ids": ids, "attention_mask": mask, **inputs}, {}, config(**vision), processor)
    return build_branch_inputs(request, Branch("noised", pixels=noise), None)


@pytest.mark.parametrize(("counts", "tiles"), [((4, 4), (1, 1)), ((2, 4), (1, 2))])
def test_images_of_one_row_draw_their_own_noise_each(counts, tiles):
    """An image gets the same noise alone, beside another one, and behind it, where a row has an axis for the tiles of all of them."""
    first, second = draw(tiles[0], 3, 4, 4), draw(tiles[1], 3, 4, 4)
    alone = [
        edit([[count]], {"pixel_values": image[None]}, processor=NAMELESS)
        for count, image in zip(counts, (first, second), strict=True)
    ]
    both = stacked(torch.cat([first, second]), torch.cat([second]))
    edited = edit([list(counts), [counts[1]]], {"pixel_values": both}, processor=NAMELESS)["pixel_values"]
    assert torch.equal(edited[0, : tiles[0]], alone[0]["pixel_values"][0])
    assert torch.equal(edited[0, tiles[0] :], alone[1]["pixel_values"][0])
    assert torch.equal(edited[1, : tiles[1]], alone[1]["pixel_values"][0])
    assert not edited[1, tiles[1] :].any()


def ints(*values):
    return torch.tensor(values)


def padded(tensor, *shape):
    """A tensor filled up with zeros at the end of each axis."""
    missing = [size - own for own, size in zip(tensor.shape, shape, strict=True)]
    return pad(tensor, [side for size in reversed(missing) for side in (0, size)])


def stacked(*tensors):
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    return torch.stack([padded(tensor, *shape) for tensor in tensors])


def same_sized(*shape):
    return [draw(*shape), draw(*shape)]


def two(first, second):
    """Two images `[3, height, width]` of different sizes, with what says so."""
    return [draw(3, *first), draw(3, *second)]


FLAT, NAVIT = [draw(6, 12), draw(4, 12)], [draw(3, 2, 12), draw(3, 2, 8)]
SIZED = two((4, 8), (6, 6))
PATCHES = [draw(5, 12), draw(3, 12)]
CUBES = [draw(6, 3, 2, 2), draw(4, 3, 2, 2)]
LAST = [draw(6, 4, 4, 3), draw(4, 4, 4, 3)]
TILES = [draw(3, 3, 4, 4), draw(2, 3, 4, 4)]


def sizes(images):
    return ints(*([image.shape[1], image.shape[2]] for image in images))


def pixel_mask(images):
    return stacked(*(torch.ones(image.shape[1:], dtype=torch.long) for image in images))


def ones(*lengths):
    return stacked(*(torch.ones(length, dtype=torch.long) for length in lengths))


# Of each layout: the pixels of two images, placeholders of each, how they are put together, and the other inputs of some of them.
LAYOUTS = {
    "[N, 3, H, W]": (same_sized(3, 4, 4), (4, 4), torch.stack, lambda _: {}),
    "padded to the largest, by sizes": (SIZED, (4, 6), lambda one: stacked(*one), lambda one: {"image_sizes": sizes(one)}),
    "padded to the largest, by a mask": (
        SIZED, (4, 4), lambda one: stacked(*one), lambda one: {"pixel_mask": pixel_mask(one)},
    ),
    "tiles by row, filled up": (TILES, (12, 8), lambda one: stacked(*one), lambda _: {}),
    "tiles of all rows": (TILES, (12, 8), torch.cat, lambda _: {}),
    "tiles of each image of each row": ([tile[None] for tile in TILES], (1, 1), lambda one: stacked(*one), lambda _: {}),
    "flattened patches with a grid": (
        FLAT, (3, 2), torch.cat, lambda one: {"image_grid_thw": ints(*([1, 2, len(image) // 2] for image in one))},
    ),
    "flattened patches with a grid of two axes": (
        FLAT, (3, 2), torch.cat, lambda one: {"image_grid_hw": ints(*([2, len(image) // 2] for image in one))},
    ),
    "flattened patches without a grid": (FLAT, (3, 2), torch.cat, lambda _: {}),
    "patches that look like tiles": (
        CUBES, (3, 2), torch.cat, lambda one: {"image_grid_thw": ints(*([1, 2, len(image) // 2] for image in one))},
    ),
    "patches with channels last": (LAST, (6, 4), torch.cat, lambda _: {}),
    "patches side by side": (
        NAVIT, (3, 2), lambda one: torch.cat(one, -1)[None],
        lambda one: {"target_sizes": ints(*([2, image.shape[-1] // 4] for image in one))},
    ),
    "[N, patches, D] with a mask": (
        PATCHES, (5, 3), lambda one: stacked(*one), lambda one: {"pixel_attention_mask": ones(*map(len, one))},
    ),
    "[N, patches, D] with places": (
        PATCHES, (5, 3), lambda one: stacked(*one),
        lambda one: {"image_position_ids": stacked(*(torch.ones(len(image), 2) for image in one)).long() - 1},
    ),
}  # fmt: skip


def join(layout, which):
    own, tokens, together, more = LAYOUTS[layout]
    chosen = [own[index] for index in which]
    inputs = {"pixel_values": together(chosen), **more(chosen)}
    if "image_position_ids" in inputs:
        inputs["image_position_ids"] = inputs["image_position_ids"].where(inputs["pixel_values"].any(-1)[..., None], -1)
    return [[tokens[index]] for index in which], inputs


def differences(layout, which):
    """What the edit added, sorted by size without zeros, so that padding and order do not count."""
    rows, inputs = join(layout, which)
    added = (edit(rows, inputs)["pixel_values"] - inputs["pixel_values"]).flatten()
    return added[added != 0].sort().values


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_is_edited_in_a_batch_as_it_is_alone(layout):
    alone = [differences(layout, (0,)), differences(layout, (1,))]
    assert torch.allclose(differences(layout, (0, 1)), torch.cat(alone).sort().values, atol=1e-6)
    assert torch.allclose(differences(layout, (1, 0, 1)), torch.cat([*alone, alone[1]]).sort().values, atol=1e-6)
    assert [len(each) for each in alone] == [image.numel() for image in LAYOUTS[layout][0]], (
        "every number, and no padding"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_parts_of_an_image_get_unequal_noise(layout):
    own, tokens, together, more = LAYOUTS[layout]
    plain = torch.ones_like(own[0])
    inputs = {"pixel_values": together([plain]), **more([plain])}
    if "image_position_ids" in inputs:
        inputs["image_position_ids"] = torch.zeros_like(inputs["image_position_ids"])
    edited = edit([[tokens[0]]], inputs)["pixel_values"]
    assert len(edited.unique()) > 0.9 * plain.numel()


@pytest.mark.parametrize(("outer", "inner"), [(3, 4), (1, 12), (12, 1)], ids=["inside channels", "outside", "last"])
def test_frames_of_a_still_image_are_edited_alike_wherever_they_lie(outer, inner):
    frame = draw(6, outer, 1, inner)
    pixels = frame.expand(6, outer, 2, inner).reshape(6, 24)
    inputs = {"pixel_values": pixels, "image_grid_thw": ints([1, 2, 3])}
    edited = edit([[3]], inputs, temporal_patch_size=2)["pixel_values"].reshape(6, outer, 2, inner)
    assert torch.equal(edited[:, :, 0], edited[:, :, 1])
    assert len(edited[:, :, 0].unique()) == frame.numel()


def test_frames_on_an_axis_of_their_own_are_edited_alike():
    pixels = draw(4, 1, 4, 4, 3).expand(4, 2, 4, 4, 3)
    edited = edit([[4]], {"pixel_values": pixels}, temporal_patch_size=2)["pixel_values"]
    assert torch.equal(edited[:, 0], edited[:, 1])
    assert len(edited[:, 0].unique()) == pixels[:, 0].numel()


def test_patches_that_nobody_can_tell_apart_are_refused_in_a_batch_and_edited_alone():
    pixels = draw(7, 12)
    with pytest.raises(StrategyRefused, match="nothing tells which part is whose"):
        edit([[3], [2]], {"pixel_values": pixels})
    with pytest.raises(StrategyRefused, match="nothing tells which part is whose"):
        images.edit_pixels("pixel_values", pixels, None, config(), noise, 0)
    assert not torch.equal(edit([[3]], {"pixel_values": pixels})["pixel_values"], pixels)


def test_patches_are_not_taken_for_pictures():
    layout = images.read_layout("pixel_values", CUBES[0], {"image_grid_thw": ints([1, 2, 3])})
    with pytest.raises(StrategyRefused, match="Pictures cannot be recovered"):
        images.edit_recovered(CUBES[0], layout, SimpleNamespace(), lambda picture, _: picture, 0)


@pytest.mark.parametrize("shared", [True, False], ids=["one matrix", "a list"])
def test_features_of_a_whole_batch_are_edited_image_by_image(shared):
    features = [draw(3, 8), draw(2, 8)]
    joined = torch.cat(features) if shared else features
    encoded = {"image": Encoded(pooler_output=joined, deepstack_features=[joined])}
    edited = images.edit_features(encoded, noise, 0, tokens=(3, 2), rows=2)["image"]
    alone = [images.edit_features({"image": Encoded(pooler_output=one[None])}, noise, 0)["image"] for one in features]
    wanted = torch.cat([one["pooler_output"][0] for one in alone])
    for got in (edited["pooler_output"], edited["deepstack_features"][0]):
        assert torch.equal(got if shared else torch.cat(got), wanted)
    if shared:
        with pytest.raises(StrategyRefused, match="hold all images of the batch"):
            images.edit_features(encoded, noise, 0, tokens=(), rows=2)


class Encoded(dict):
    """The output of an image encoder."""

    __getattr__ = dict.get

    def __setattr__(self, name, value):
        self[name] = value
