"""Pictures and prompts that a model is verified with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from lvlm_guard.errors import InputError
from lvlm_guard.guard import Guard
from lvlm_guard.verification.checks import Unproven

PROMPT = "Describe this image."
LONGER = "What colours are there, and where in the picture is each of them? Answer in one sentence."
SHORTER = "Describe it."
SIDE = 336
SHAPES = ((1.0, 1.0), (1.5, 1.0), (1.0, 0.75))
"""Width and height of the drawn pictures, in sides."""


def draw_pictures(config: Any, shapes: Sequence[tuple[float, float]] = SHAPES) -> list[Image.Image]:
    """Return pictures of noise and shapes, near the size that a model was trained on; always the same."""
    side = getattr(getattr(config, "vision_config", None), "image_size", None)
    side = side if isinstance(side, int) else SIDE
    return [_draw(round(width * side), round(height * side), seed) for seed, (width, height) in enumerate(shapes)]


def _draw(width: int, height: int, seed: int) -> Image.Image:
    """Return coloured rectangles and discs on faint noise."""
    draw = np.random.default_rng(seed)
    levels = draw.integers(96, 160, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    for number in range(4):
        top, left = draw.uniform(0.1, 0.7) * height, draw.uniform(0.1, 0.7) * width
        size = draw.uniform(0.15, 0.3) * min(height, width)
        down, right = np.abs(rows - top), np.abs(columns - left)
        inside = np.maximum(down, right) < size if number % 2 else np.hypot(down, right) < size
        levels[inside] = draw.integers(0, 256, 3)
    return Image.fromarray(levels.astype(np.uint8))


class PromptSet:
    """Prompts of several lengths with a picture each, singly and as one batch.

    Drawn pictures are of one size where the processor makes no batch of several.

    Args:
        guard: Makes the inputs.
        prompt: The first question.
        pictures: One for each prompt, in turns; drawn where there are none.

    Raises:
        InputError: The processor cannot make inputs of the first prompt.
    """

    def __init__(self, guard: Guard, prompt: str = PROMPT, pictures: Sequence[Any] = ()) -> None:
        self._guard = guard
        texts = (prompt, SHORTER, LONGER)
        drawn = draw_pictures(guard.model.config)
        pictures = list(pictures) or drawn
        self._prompts = [(text, pictures[index % len(pictures)]) for index, text in enumerate(texts)]
        if pictures is drawn and not self._makes_batches():
            squares = draw_pictures(guard.model.config, SHAPES[:1] * len(texts))
            self._prompts = list(zip(texts, squares, strict=True))
        self.first = self._write(self._prompts[:1])

    def _makes_batches(self) -> bool:
        """Whether the processor makes one batch of pictures of several sizes."""
        try:
            self._write(self._prompts)
        except InputError:
            return False
        return True

    @property
    def size(self) -> int:
        """Prompts in the batch."""
        return len(self._prompts)

    def row(self, index: int) -> Any:
        """Return the inputs of one prompt."""
        return self.first if index == 0 else self._write(self._prompts[index : index + 1])

    def batch(self) -> Any:
        """Return the inputs of all prompts, padded on the left.

        Raises:
            Unproven: The processor cannot make one batch of them.
        """
        try:
            return self._write(self._prompts)
        except InputError as error:
            raise Unproven(f"The processor makes no batch of these prompts: {error}") from error

    def _write(self, prompts: Sequence[tuple[str, Any]]) -> Any:
        processor = self._guard.processor
        if getattr(processor, "chat_template", None) or not hasattr(processor, "tokenizer"):
            return self._guard.inputs(messages=[_write_message(text, picture) for text, picture in prompts])
        texts, pictures = [text for text, _ in prompts], [picture for _, picture in prompts]
        try:
            return self._guard.inputs(images=pictures, text=texts)  # some processors place a picture by themselves
        except InputError:
            token = getattr(processor, "image_token", None) or ""
            token = token if isinstance(token, str) else str(getattr(token, "content", ""))
            return self._guard.inputs(images=pictures, text=[f"{token}{text}" for text in texts])


def _write_message(text: str, picture: Any) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]
