"""At strength s: pixels + s * noise; or the picture blurred by s / 8 of its side, cut to 1 - s of its area, or s of it grey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from against_twin import OF_STRATEGIES, check
from bundled import BundledContract
from coloured_pictures import draw_pictures, logits, run
from edited_prompts import check_by_hand
from lvlm_guard_augmentation import Transform
from PIL import Image, ImageFilter
from twin import Twin

from lvlm_guard.request.images import generator_for
from lvlm_guard.testing.sequences import SIDE

pytestmark = pytest.mark.filterwarnings("ignore:.*changed no logit.*")


def blur(picture, _):
    return picture.filter(ImageFilter.GaussianBlur(0.6 * SIDE / 8))


def crop(picture, draw):
    side = round(SIDE * math.sqrt(0.4))
    left, top = (round(float(share) * (SIDE - side)) for share in torch.rand(2, generator=draw))
    return Image.fromarray(np.asarray(picture)[top : top + side, left : left + side]).resize((SIDE, SIDE))


def mask(picture, draw):
    hidden = torch.randperm(64, generator=draw)[: round(0.6 * 64)].tolist()
    pixels = np.asarray(picture).copy()
    for down in range(SIDE):
        for across in range(SIDE):
            if (down * 8 // SIDE) * 8 + across * 8 // SIDE in hidden:
                pixels[down, across] = 128
    return Image.fromarray(pixels)


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
@pytest.mark.parametrize(("kind", "change"), [("blur", blur), ("crop", crop), ("mask", mask)])
def test_a_transformed_picture_on_every_architecture(architecture, kind, change):
    def edited(picture, text):
        return change(picture, generator_for(torch.from_numpy(np.asarray(picture).copy()), 3)), text

    check_by_hand(architecture, Transform(kind=kind, strength=0.6, seed=3), edited)


class TestTransform(BundledContract):
    strategy = Transform(strength=1.0)


@pytest.mark.parametrize("kind", ["blur", "crop", "mask"])
def test_a_transformed_picture_is_that_picture(kind):
    strategy, images = Transform(kind=kind, strength=0.6, seed=3), draw_pictures()
    inputs, got = run([strategy], images)
    change = {"blur": strategy._blur, "crop": strategy._crop, "mask": strategy._mask}[kind]
    changed = [change(one, generator_for(torch.from_numpy(np.asarray(one).copy()), 3)) for one in images]
    assert all(one.size == (30, 30) for one in changed)
    _, hand = run([], changed)
    assert torch.allclose(logits(got), logits(hand), atol=1e-4)
    plain = run([], images)[1]
    assert float((got.logits[0] - plain.logits[0]).abs().max()) > 0.1
    assert torch.equal(got.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


def test_noise_is_the_stated_noise():
    strategy, pixels = Transform(strength=0.5, seed=1), torch.zeros(3, 40, 40)
    noised = strategy._add_noise(pixels, torch.Generator().manual_seed(0))
    assert float(noised.std()) == pytest.approx(0.5, rel=0.05)


def test_a_mask_hides_its_share():
    masked = Transform(kind="mask", strength=0.25)._mask(Image.new("RGB", (64, 64), (255, 0, 0)), torch.Generator())
    assert float((np.asarray(masked) == 128).all(-1).mean()) == pytest.approx(0.25)


@pytest.mark.parametrize("architecture", OF_STRATEGIES)
def test_noise_is_noise_on_the_pixels(architecture):
    def noised(inputs):
        pixels = inputs["pixel_values"]
        tile = pixels.reshape(16, 3, 2, 16) if architecture == "qwen2_vl" else pixels[0]  # patches: channels, frames
        noise = torch.randn(tile.shape, generator=generator_for(tile, 4))
        return {**inputs, "pixel_values": (tile + noise).reshape(pixels.shape)}

    def gold(model, inputs, prefix):
        return Twin(model).next(noised(inputs), prefix), Twin(model).next(inputs, prefix)

    check([Transform(kind="noise", strength=1.0, seed=4)], gold, architecture)
