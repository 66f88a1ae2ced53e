"""Requests of a Qwen-like tiny model, with images and videos in the prompt."""

from __future__ import annotations

from typing import Any

import torch

from lvlm_guard.testing import tiny
from lvlm_guard.testing.tiny import IMAGE_TOKEN, VISION_END, VISION_START

VIDEO_TOKEN = 101
IMAGE, VIDEO = [VISION_START, *[IMAGE_TOKEN] * 4, VISION_END], [VISION_START, *[VIDEO_TOKEN] * 4, VISION_END]


def request(architecture: str, tokens: list[int]) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a model, and the inputs of one prompt."""
    model, inputs = tiny(architecture)
    ids = torch.tensor([tokens])
    types = (ids == IMAGE_TOKEN).long() + 2 * (ids == VIDEO_TOKEN)
    draw = torch.Generator().manual_seed(7)
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        made["mm_token_type_ids"] = types
    if IMAGE_TOKEN in ids:
        made |= {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    if VIDEO_TOKEN in ids:
        made["pixel_values_videos"] = torch.randn(16, 96, generator=draw)
        made["video_grid_thw"] = torch.tensor([[1, 4, 4]])
    return model, made
