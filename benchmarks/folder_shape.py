"""A model of a folder where a shape with random weights could stand: real weights, a real prompt, pictures of noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard import loading

QUESTION = "Describe this picture in detail, and say where things are."
SIDE = 224
"""Pixels of a side, where the model has no size of its own."""


@dataclass(frozen=True)
class FolderShape:
    """A model that is loaded, with what `Shape` tells of one.

    Args:
        folder: A local folder or a hub id.
    """

    folder: str

    @property
    def name(self) -> str:
        """What the rows call it."""
        return f"{type(self._loaded[0]).__name__} with its own weights"

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return loading.load(self.folder, "cpu", "bfloat16")

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The model, which never ends an answer: all that take turns make as many tokens."""
        model = self._loaded[0].to(device, dtype)
        model.generation_config.eos_token_id = None
        return model.eval()

    def inputs(self, model: Any, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Inputs of `batch` rows: one question about pictures of noise."""
        draw = np.random.default_rng(seed)
        side = int(getattr(model.config.vision_config, "image_size", SIDE))
        pictures = [Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(batch)]
        processor = self._loaded[1]
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
            add_generation_prompt=True,
        )
        made: Mapping[str, Tensor] = processor(text=[text] * batch, images=pictures, return_tensors="pt")
        return {
            name: value.to(model.dtype) if value.is_floating_point() else value.to(model.device)
            for name, value in made.items()
        }

    def text_only(self, ids: Tensor) -> Tensor:
        """Prompt ids without the image."""
        return ids[ids != self._image_token].reshape(ids.shape[0], -1)

    @property
    def _image_token(self) -> int:
        config = self._loaded[0].config
        return int(getattr(config, "image_token_id", None) or config.image_token_index)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt, image included."""
        return int(self._ids.shape[1])

    @property
    def image_tokens(self) -> int:
        """Placeholders of the picture."""
        return int((self._ids == self._image_token).sum())

    @property
    def _ids(self) -> Tensor:
        return self.inputs(self._loaded[0], 1)["input_ids"]
