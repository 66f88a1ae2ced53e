"""Requests with a video: dropped beside images or alone exactly, and refused by that word where it would stay as it was."""

import pytest
import torch
from gold import SUPPRESSED, WEIGHT, Against, disturbed
from video_requests import IMAGE, VIDEO, request

from lvlm_guard import Guard, ModeRefused
from lvlm_guard.testing.recompute import next_logits

SETTINGS = {
    "max_new_tokens": 3, "do_sample": False, "suppress_tokens": SUPPRESSED,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip
PROMPTS = {
    "video alone": [8, *VIDEO, 9, 10],
    "image and video": [8, *IMAGE, 7, *VIDEO, 9, 10],
    "video and image side by side": [8, *VIDEO, *IMAGE, 9],
}
ARCHITECTURES = ["qwen2_vl", "qwen2_5_vl"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_and_videos_are_dropped_together(architecture, prompt):
    model, inputs = request(architecture, PROMPTS[prompt])
    got = Guard(model, None, [Against("blind")]).generate(**inputs, **SETTINGS)
    text = [token for token in PROMPTS[prompt] if token not in (*IMAGE, *VIDEO)]
    _, blind = request(architecture, text)
    start = inputs["input_ids"].shape[1]
    for step, logits in enumerate(got.logits):
        said = got.sequences[0, start : start + step].tolist()
        main, branch = next_logits(model, inputs, said), next_logits(model, blind, said)
        assert float(((1 + WEIGHT) * main - WEIGHT * branch - logits[0]).abs().max()) <= 1e-4
        assert float((main - branch).abs().max()) > 0.1


@pytest.mark.parametrize("prompt", PROMPTS)
def test_masked_images_are_refused_beside_a_video(prompt):
    model, inputs = request("qwen2_vl", PROMPTS[prompt])
    with pytest.raises(ModeRefused, match="the request holds a video"):
        Guard(model, None, [Against("masked")]).generate(**inputs, **SETTINGS)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pixels_of_images_and_of_frames_are_edited_alike(architecture, prompt):
    model, inputs = request(architecture, PROMPTS[prompt])
    got = Guard(model, None, [Against("noised")]).generate(**inputs, **SETTINGS)
    changed = {name: disturbed(value) if "pixel_values" in name else value for name, value in inputs.items()}
    start = inputs["input_ids"].shape[1]
    for step, logits in enumerate(got.logits):
        said = got.sequences[0, start : start + step].tolist()
        main, branch = next_logits(model, inputs, said), next_logits(model, changed, said)
        assert float(((1 + WEIGHT) * main - WEIGHT * branch - logits[0]).abs().max()) <= 1e-4
        assert float((main - branch).abs().max()) > 0.1


def test_every_video_draws_its_own_noise_whatever_stands_beside_it():
    model, inputs = request("qwen2_vl", PROMPTS["video alone"])
    alone = Guard(model, None, "vcd").generate(**inputs, **SETTINGS).logits[0]
    other = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"].flip(0)}
    both = {name: torch.cat([other[name], value]) for name, value in inputs.items()}
    together = Guard(model, None, "vcd").generate(**both, **SETTINGS).logits[0]
    assert float((together[1] - alone[0]).abs().max()) <= 1e-4
    assert float((together[0] - alone[0]).abs().max()) > 0.1


def test_a_longer_prompt_keeps_the_video():
    model, inputs = request("qwen2_vl", PROMPTS["image and video"])
    got = Guard(model, None, [Against("longer")]).generate(**inputs, **SETTINGS).logits[0][0]
    _, longer = request("qwen2_vl", [8, *IMAGE, 7, *VIDEO, 7, 9, 11, 9, 10])
    wanted = (1 + WEIGHT) * next_logits(model, inputs, ()) - WEIGHT * next_logits(model, longer, ())
    assert float((got - wanted).abs().max()) <= 1e-4
