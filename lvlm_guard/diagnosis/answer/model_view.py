"""The picture as the model's processor cut it: maps over image tokens lie on this one, not on what was passed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.diagnosis.answer.forcing import AnswerRequest

PIXELS = "pixel_values"
PLAIN_LAYOUT = 4


def restore_view(request: AnswerRequest) -> Image.Image | None:
    """Return the picture that went into the tower, where the pixels are one `[1, 3, height, width]`; None elsewhere.

    Normalisation is undone where the processor says how it was done, else the levels are stretched.
    """
    pixels = request.inputs.get(PIXELS)
    if not isinstance(pixels, Tensor) or pixels.ndim != PLAIN_LAYOUT or pixels.shape[:2] != (1, 3):
        return None
    values = pixels[0].detach().float().cpu()
    processor = getattr(request.guard.processor, "image_processor", request.guard.processor)
    levels = _undo(values, getattr(processor, "image_mean", None), getattr(processor, "image_std", None))
    array = (levels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array))


def _undo(values: Tensor, mean: Any, deviation: Any) -> Tensor:
    if mean is not None and deviation is not None:
        return values * torch.tensor(deviation)[:, None, None] + torch.tensor(mean)[:, None, None]
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=1e-6)
