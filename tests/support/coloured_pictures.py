"""Pictures of random colours, and a guarded call on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gold import SUPPRESSED
from PIL import Image
from torch import Tensor
from toy_processor import toy_processor

from lvlm_guard import Guard
from lvlm_guard.testing import tiny


def draw_pictures(count: int = 2) -> list[Image.Image]:
    """Draw pictures of random pixels."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (30, 30, 3), dtype=np.uint8)) for _ in range(count)]


def logits(output: Any) -> Tensor:
    """Stack the logits of generate's output `[steps, rows, vocab]`."""
    return torch.stack(output.logits)


PROMPTS = ["a <image> b c d", "a b <image> e"]


def run(
    strategies: Iterable[Any], images: Sequence[Any], prompts: Sequence[str] = PROMPTS, tokens: int = 4
) -> tuple[Any, Any]:
    """Return the inputs and the output of a guarded call."""
    model, _ = tiny("llava")
    guard = Guard(model, toy_processor(), list(strategies))
    inputs = guard.inputs(images=images, text=prompts)
    settings: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False, "suppress_tokens": SUPPRESSED}
    return inputs, guard.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
