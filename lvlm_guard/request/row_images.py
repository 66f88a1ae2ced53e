"""Which rows of a batch hold an image, and whether its pixels have an entry for each row or for each image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.request.prompts import find_spans
from lvlm_guard.request.requests import Request

PixelAxis = Literal["rows", "images", "unknown"]
"""What the first axis of the pixels counts."""


def rows_with_image(request: Request) -> Tensor:
    """Rows whose prompt holds an image or a video, bool `[batch]`; the pixels tell where a model has no placeholders."""
    if not (request.has_image or request.has_video) or request.stands_beside:
        return torch.full((request.input_ids.shape[0],), request.has_image, device="cpu")
    return (request.image_mask | request.video_mask).any(1).cpu()


def find_pixel_axis(request: Request) -> PixelAxis:
    """Return what the first axis of pixels counts in a batch of which only some rows have an image.

    Rows that have none are blank in pixels of rows. Pixels of images are as many as the prompts have places for.
    """
    batch, rows = len(request.input_ids), rows_with_image(request)
    pixels = [value for name, value in request.inputs.items() if anatomy.is_pixels(name, value)]
    if all(len(value) != batch for value in pixels):
        return "images"
    if all(len(value) == batch and _is_blank(value, ~rows) for value in pixels):
        return "rows"
    return "images" if sum(map(len, find_spans(request))) == batch else "unknown"


def _is_blank(pixels: Tensor, rows: Tensor) -> bool:
    """Whether pixels are zero in these rows, bool `[batch]`, and in no other."""
    filled = pixels.flatten(1).any(1).cpu()
    return torch.equal(filled, ~rows)
