"""The numbers an image edit draws: the same for one image however it was rounded, others for other images."""

from __future__ import annotations

import pytest
import torch
from served import draw_picture

from lvlm_guard import loading
from lvlm_guard.request.images import generator_for

SHAPES = [(3, 24, 24), (3, 64, 64), (196, 48)]


def draw(content, seed=0):
    return torch.randn(4, generator=generator_for(content, seed)).tolist()


def random_image(seed, shape=(3, 24, 24)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels_of(count):
    _, processor = loading.load("testbed", "cpu")
    pictures = [draw_picture(seed) for seed in range(count)]
    return processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cast_to_bfloat16_draws_the_same(shape):
    images = [random_image(seed, shape) for seed in range(40)]
    assert [draw(image.to(torch.bfloat16)) for image in images] == [draw(image) for image in images]
    assert [draw(image.to(torch.bfloat16).float()) for image in images] == [draw(image) for image in images]


def test_another_processors_rounding_draws_the_same():
    pixels = pixels_of(40)
    for seed, image in enumerate(pixels):
        rounded = image + 2e-7 * random_image(seed, image.shape).sign()
        assert not torch.equal(rounded, image)
        assert draw(rounded) == draw(image)


def test_flat_images_draw_the_same_after_rounding():
    for level in range(0, 256, 5):
        image = torch.full((3, 8, 8), (level / 255 - 0.5) / 0.25)
        assert draw(image.to(torch.bfloat16)) == draw(image)
        assert draw(image * (1 + 1e-7)) == draw(image)


def test_other_images_draw_other_numbers():
    drawn = [tuple(draw(image)) for image in pixels_of(40)]
    assert len(set(drawn)) == len(drawn)
    assert len({tuple(draw(random_image(seed))) for seed in range(40)}) == 40


def test_seed_shape_and_pieces_count():
    image = random_image(0)
    drawn = [draw(image), draw(image, 1), draw(image.reshape(3, 12, 48)), draw([image, image])]
    assert len(set(map(tuple, drawn))) == len(drawn)


def test_whole_numbers_count_exactly():
    image = torch.randint(0, 255, (24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    changed = image.clone()
    changed[0, 0, 0] += 1
    assert draw(changed) != draw(image)


def test_values_that_are_no_numbers_are_taken_as_they_come():
    image = random_image(0)
    image[0, 0, 0] = torch.nan
    assert draw(image) == draw(image.clone())
