"""A left-padded batch with ragged prompts and images equals its rows run alone, on every architecture and branch."""

import pytest
import torch
from gold import CORE, SUPPRESSED, TOLERANCE, Against

from lvlm_guard import Guard
from lvlm_guard.request.images import edit_pixels
from lvlm_guard.testing import tiny
from lvlm_guard.testing.contract import left_padded, ragged
from lvlm_guard.testing.tiny import IMAGE_TOKEN

SETTINGS = {
    "max_new_tokens": 4, "do_sample": False, "suppress_tokens": SUPPRESSED,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip


DEMOTED = -1e3
"""Logits under this are those of tokens that a strategy ruled out."""


def logits(guard, inputs):
    return torch.stack(guard.generate(**inputs, **SETTINGS).logits)


@pytest.mark.parametrize("kind", ["noised", "longer", "blind", "masked"])
@pytest.mark.parametrize("architecture", CORE)
def test_a_ragged_batch_equals_its_rows(architecture, kind):
    model, _ = tiny(architecture)
    singles, batch = ragged(architecture, model)
    for executor in ("auto", "sequential"):
        guard = Guard(model, None, [Against(kind)], executor=executor)
        together = logits(guard, batch)
        for row, one in enumerate(singles):
            difference = float((logits(guard, one) - together[:, row : row + 1]).abs().max())
            assert difference <= TOLERANCE, f"{executor}: row {row} differs by {difference}"
    effect = float((together - torch.stack(model.generate(**batch, **SETTINGS).logits)).abs().max())
    print(f"{architecture} {kind}: effect {effect:.2f}")
    assert effect > 0.1


@pytest.mark.parametrize("kind", ["noised", "longer", "blind"])
@pytest.mark.parametrize("architecture", CORE)
def test_beams_of_a_ragged_batch_are_those_of_its_rows(architecture, kind):
    model, _ = tiny(architecture)
    singles, batch = ragged(architecture, model)
    settings = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "suppress_tokens": SUPPRESSED}
    length = batch["input_ids"].shape[1]
    for executor in ("auto", "sequential"):
        guard = Guard(model, None, [Against(kind)], executor=executor)
        together = guard.generate(**batch, **settings)[:, length:]
        assert guard.report.executor != "none"
        for row, one in enumerate(singles):
            alone = guard.generate(**one, **settings)[0, one["input_ids"].shape[1] :]
            assert torch.equal(together[row], alone), f"{executor}: row {row}"


def two_images(architecture, model):
    """A prompt with two images, beside one with a single image, and both as a batch."""
    one, _, _ = ragged(architecture, model)[0]
    image = one["input_ids"] == IMAGE_TOKEN
    first, last = int(image[0].nonzero()[0]), int(image[0].nonzero()[-1])
    span = one["input_ids"][:, first : last + 1]
    more = torch.cat(
        [one["input_ids"][:, : last + 1], torch.tensor([[8]]), span, one["input_ids"][:, last + 1 :]], dim=1
    )
    two = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    two["pixel_values"] = torch.cat([one["pixel_values"], one["pixel_values"].flip(-1)])
    return [one, two], left_padded([one, two])


@pytest.mark.parametrize("kind", ["noised", "blind", "longer"])
@pytest.mark.parametrize("architecture", ["llava", "internvl"])
def test_rows_may_bring_different_numbers_of_images(architecture, kind):
    model, _ = tiny(architecture)
    singles, batch = two_images(architecture, model)
    guard = Guard(model, None, [Against(kind)])
    together = logits(guard, batch)
    for row, one in enumerate(singles):
        difference = float((logits(guard, one) - together[:, row : row + 1]).abs().max())
        assert difference <= TOLERANCE, f"row {row} differs by {difference}"


@pytest.mark.parametrize("architecture", CORE)
def test_neither_batch_nor_row_order_changes_the_noise(architecture):
    model, _ = tiny(architecture)
    singles, _ = ragged(architecture, model)
    guard = Guard(model, None, "vcd")
    forwards, backwards = logits(guard, left_padded(singles)), logits(guard, left_padded(singles[::-1]))
    assert apart(forwards, backwards.flip(1)) <= TOLERANCE
    assert apart(logits(guard, singles[1])[0, 0], forwards[0, 1]) <= TOLERANCE


def apart(ours, others):
    """The largest difference of logits that are not demoted, which are too large for this tolerance."""
    kept = (ours > DEMOTED) & (others > DEMOTED)
    assert torch.equal(ours > DEMOTED, others > DEMOTED)
    return float((ours - others)[kept].abs().max())


def test_a_still_image_gets_the_same_noise_in_every_repeated_frame():
    model, inputs = tiny("qwen2_vl")
    patches = inputs["pixel_values"].reshape(16, 3, 2, 16)
    still = patches[:, :, :1].expand_as(patches).reshape(16, 96)
    noise = lambda pixels, generator: pixels + torch.randn(pixels.shape, generator=generator)  # noqa: E731
    edited = edit_pixels("pixel_values", still, inputs["image_grid_thw"], model.config, noise, 0).reshape(16, 3, 2, 16)
    assert torch.equal(edited[:, :, 0], edited[:, :, 1])
    assert not torch.equal(edited.reshape(16, 96), still)
    moving = edit_pixels("pixel_values", inputs["pixel_values"], inputs["image_grid_thw"], model.config, noise, 0)
    draws = (moving - inputs["pixel_values"]).reshape(16, 3, 2, 16)
    assert not torch.allclose(draws[:, :, 0], draws[:, :, 1])


def test_tiles_that_only_fill_up_a_batch_stay_empty():
    """idefics3 knows them by being zero; noise on them would be a picture more than there are placeholders."""
    model, inputs = tiny("idefics3", 2)
    ids, single = inputs["input_ids"], {}
    keep = torch.ones(ids.shape[1], dtype=torch.bool)
    keep[(ids[1] == IMAGE_TOKEN).nonzero().flatten()[4:]] = False
    single["input_ids"] = ids[1:, keep]
    single["attention_mask"] = torch.ones_like(single["input_ids"])
    for name in ("pixel_values", "pixel_attention_mask"):
        single[name] = inputs[name][1:, :1]
    padding = ids.shape[1] - int(keep.sum())
    batch = {name: value.clone() for name, value in inputs.items()}
    batch["input_ids"][1] = torch.cat([torch.zeros(padding, dtype=torch.long), single["input_ids"][0]])
    batch["attention_mask"][1, :padding] = 0
    batch["pixel_values"][1, 1], batch["pixel_attention_mask"][1, 1] = 0, 0
    for stack in ("vcd", [Against("noised")]):
        guard = Guard(model, None, stack)
        together, alone = logits(guard, batch), logits(guard, single)
        assert float((together[:, 1:] - alone).abs().max()) <= TOLERANCE
