"""A scorer for strategies that need one: how much the bundled model's picture speaks for a sentence."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.testbed.model import load
from lvlm_guard.testbed.world.language import DESCRIBE

GREY = (128, 128, 128)
_MESSAGE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": DESCRIBE[0]}]}]


def grounding(picture: Image.Image, sentences: Sequence[str]) -> list[float]:
    """Mean over tokens of `log p(token | picture) - log p(token | grey)`, in nats, for each sentence of a caption.

    The bundled model judges itself here, so it stands in for CLIP where there is none: `rank` with
    `scorer = "lvlm_guard.testbed.scorer:grounding"`.
    """
    model, processor = _bundled()
    prompt = processor.apply_chat_template(_MESSAGE, add_generation_prompt=True)
    texts = [f"{prompt} {sentence}" for sentence in sentences]
    ends = processor.tokenizer(list(sentences), add_special_tokens=False)["input_ids"]
    pictured, blank = (
        _likelihoods(model, processor(text=texts, images=[image] * len(texts), padding=True, return_tensors="pt"))
        for image in (picture, Image.new("RGB", picture.size, GREY))
    )
    gained = pictured - blank
    return [float(row[-len(ids) :].mean()) if ids else 0.0 for row, ids in zip(gained, ends, strict=True)]


def _likelihoods(model: Any, inputs: Any) -> Tensor:
    """Log-probability of every token but the first, left-padded `[sentences, length - 1]`."""
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1]
    return logits.float().log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]


@functools.cache
def _bundled() -> tuple[Any, Any]:
    return load()
