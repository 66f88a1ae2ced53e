"""z + kappa z+ on plausible tokens; z+ for one random transform of the picture."""

from __future__ import annotations

import math
from types import SimpleNamespace

import against_twin
import numpy as np
import pytest
import torch
from against_twin import check
from bundled import BundledContract
from lvlm_guard_contrastive import RITUAL
from lvlm_guard_contrastive.ritual import EVERY, TRANSFORMS, turn_hue
from PIL import Image
from twin import Twin

from lvlm_guard import Guard
from lvlm_guard.request.requests import Pictures
from lvlm_guard.testing.contract import Words


def plausible(main, combined, beta):
    return torch.where(main >= main.max() + math.log(beta), combined, main - 1e4)


def flip(picture):
    return np.asarray(picture)[:, ::-1]


class Colours(Words):
    """A processor that tells how its pixels were normalised."""

    image_mean = (0.5, 0.4, 0.6)
    image_std = (0.3, 0.2, 0.25)


@pytest.mark.parametrize("architecture", ["llava", "gemma3"])
def test_ritual_on_recovered_pictures(architecture, monkeypatch):
    mean, deviation = (torch.tensor(one).view(-1, 1, 1) for one in (Colours.image_mean, Colours.image_std))

    def gold(model, inputs, prefix):
        shown = ((inputs["pixel_values"] * deviation + mean).clamp(0, 1) * 255).round().flip(-1) / 255
        main = Twin(model).next(inputs, prefix)
        added = Twin(model).next({**inputs, "pixel_values": (shown - mean) / deviation}, prefix)
        return plausible(main, main + 1.5 * added, 0.1), main

    monkeypatch.setattr(against_twin, "Words", Colours)
    check([RITUAL(kappa=1.5, transforms=("flip",))], gold, architecture)


def pack(pictures):
    """Pixels of 16 x 16 pictures as 16 rows of numbers; any order does, as long as both sides use it."""
    arrays = [torch.from_numpy(np.asarray(one).copy()).float().reshape(16, 48).repeat(1, 2) for one in pictures]
    return {"pixel_values": torch.cat(arrays) / 127.5 - 1}


def noise(seed, size=(16, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*reversed(size), 3), dtype=np.uint8))


def test_ritual_on_remembered_pictures(monkeypatch):
    lengths = {3: 0, 6: 1, 11: 2}  # of the text, by which a row's picture is known
    pictures = [noise(row) for row in range(3)]

    def guard(model, processor, strategies, executor):
        made = Guard(model, processor, strategies, executor=executor)
        made._recent_pictures = SimpleNamespace(find=lambda inputs: Pictures(tuple(pictures), pack))
        return made

    def gold(model, inputs, prefix):
        picture = pictures[lengths[int((inputs["input_ids"] < 98).sum()) - 2]]
        turned_round = pack([Image.fromarray(flip(picture))])
        main = Twin(model).next(inputs, prefix)
        return plausible(main, main + 3 * Twin(model).next({**inputs, **turned_round}, prefix), 0.1), main

    monkeypatch.setattr(against_twin, "Guard", guard)
    check([RITUAL(transforms=("flip",))], gold, "qwen2_vl")


@pytest.mark.parametrize("transform", EVERY)
def test_transforms_keep_the_size_and_draw_from_their_generator_alone(transform):
    picture = noise(3, size=(40, 24))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn = [
        RITUAL(transforms=(transform,))._transform(picture, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(one.size == picture.size and one.mode == "RGB" for one in drawn)
    assert drawn[0].tobytes() == drawn[1].tobytes() != picture.tobytes()
    assert (drawn[0].tobytes() == drawn[2].tobytes()) == (transform in ("flip", "flop"))


def test_transforms_do_what_they_are_called():
    picture = noise(4, size=(40, 24))
    pixels, generator = np.asarray(picture), torch.Generator().manual_seed(0)
    assert np.array_equal(TRANSFORMS["flip"](picture, generator), pixels[:, ::-1])
    assert np.array_equal(TRANSFORMS["flop"](picture, generator), pixels[::-1])
    assert np.asarray(TRANSFORMS["blur"](picture, generator)).std() < 0.5 * pixels.std()
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert turn_hue(red, 1 / 3).getpixel((0, 0)) == (0, 255, 0)
    assert turn_hue(red, 0.0).getpixel((0, 0)) == (255, 0, 0)


def test_a_crop_shows_a_window_of_the_published_sizes():
    ramp = np.broadcast_to(np.linspace(0, 250, 100)[None], (100, 100))
    picture = Image.fromarray(np.stack([ramp, ramp.T, ramp * 0], -1).astype(np.uint8))
    for seed in range(50):
        shown = np.asarray(TRANSFORMS["crop"](picture, torch.Generator().manual_seed(seed))).astype(float)
        width, height = ((shown[..., side].max() - shown[..., side].min()) / 250 for side in (0, 1))
        assert 0.06 <= width * height <= 1
        assert width > 0.99 or height > 0.99 or 0.7 <= width / height <= 1.42


def test_every_transform_is_drawn_as_often():
    picture, drawn = noise(5, size=(4, 4)), []
    shown = {name: name for name in EVERY}
    with pytest.MonkeyPatch.context() as patch:
        for name in EVERY:
            patch.setitem(TRANSFORMS, name, lambda _, generator, name=name: drawn.append(shown[name]))
        for seed in range(600):
            RITUAL()._transform(picture, torch.Generator().manual_seed(seed))
    assert all(70 <= drawn.count(name) <= 130 for name in EVERY)


class TestRITUAL(BundledContract):
    strategy = RITUAL()
    architectures = ("llava", "gemma3")  # pack patches need remembered pictures, see above

    def guard(self, model, *strategies, **options):
        return Guard(model, Colours(), list(strategies), **options)
