"""Known items of noise, which tiny models are diagnosed on, and processors with a chat template."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from lvlm_guard.diagnosis import KnownItem
from lvlm_guard.testing import TinyProcessor


def draw_items(count: int) -> list[KnownItem]:
    """Return items about pictures of noise, captions among them."""
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]
    return [
        KnownItem(picture, f"w{10 + at} w{20 + at}", "w81 w77" if at % 2 else "w90", str(at % 2), bool(at % 2))
        for at, picture in enumerate(pictures)
    ]


def processor_of(architecture: str) -> Any:
    """Return a processor that conversations can be written by."""
    processor: Any = TinyProcessor(architecture)
    processor.chat_template = "its own"
    return processor
