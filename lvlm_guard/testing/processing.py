"""A processor for the tiny models, for strategies that read pictures and texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from lvlm_guard.testing.tiny import ARCHITECTURES, complete, placeholders

SPECIAL = frozenset({*range(5), *range(98, 105)})
NO, STOP = 75, 4
PACKED = (16, 16)


class TinyTokenizer:
    """Words that name their ids, as `w81` names 81.

    Below 75 they begin with no, as `no-17` does, and each fourth ends a sentence, as `w80.` does. In prompts `w17` is 17 too, and
    any other word is some id. So a tiny model writes sentences and answers no, at random.
    """

    unk_token_id = 3
    padding_side = "left"

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Return the token ids of a text."""
        return {"input_ids": [_id(word) for word in text.split()]}

    def decode(self, ids: Iterable[Any], **_: Any) -> str:
        """Return the words of token ids, without special ones."""
        return " ".join(_word(int(token)) for token in ids if int(token) not in SPECIAL)


def _id(word: str) -> int:
    number = re.fullmatch(r"\D*?(\d+)\W*", word)
    return int(number[1]) if number else 5 + sum(map(ord, word)) % 50


def _word(token: int) -> str:
    return ("no-" if token < NO else "w") + str(token) + ("." if token % STOP == 0 else "")


class TinyProcessor:
    """Makes inputs of a tiny model from PIL pictures, one for each prompt, and texts with `<image>` in them.

    Args:
        architecture: One of `ARCHITECTURES`.
    """

    image_token = "<image>"  # noqa: S105 - no password
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.25, 0.25, 0.25)

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.tokenizer = TinyTokenizer()

    def __call__(self, images: Sequence[Any] | None = None, text: Sequence[str] = (), **_: Any) -> BatchFeature:
        """Return the inputs of a batch, padded on the left."""
        rows = [self._ids(prompt) for prompt in text]
        length = max(map(len, rows))
        ids = torch.tensor([[0] * (length - len(row)) + row for row in rows], device="cpu")
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device="cpu")
        if not images:
            return BatchFeature({"input_ids": ids, "attention_mask": mask})
        return BatchFeature(complete(self.architecture, ids, mask, self.pixels(images)))

    def pixels(self, images: Sequence[Any]) -> Tensor:
        """Return the pixels of PIL pictures, normalised, in the architecture's own layout."""
        shape = ARCHITECTURES[self.architecture].pixels
        if len(shape) == 2:  # noqa: PLR2004 - a matrix of patches
            return torch.cat([_patches(self._normalise(image, PACKED), shape) for image in images])
        height, width = shape[-2:]
        return torch.stack([self._normalise(image, (width, height)).expand(shape) for image in images])

    def apply_chat_template(self, messages: Sequence[Any], **_: Any) -> str:
        """Return the text of one conversation."""
        items = [item for message in messages for item in message["content"]]
        texts = ["<image>" if item["type"] == "image" else str(item["text"]) for item in items]
        return " ".join(["user", *texts])

    def batch_decode(self, sequences: Iterable[Any], **_: Any) -> list[str]:
        """Return the words of each sequence."""
        return [self.tokenizer.decode(sequence) for sequence in sequences]

    def _ids(self, text: str) -> list[int]:
        image = placeholders(self.architecture)
        return [token for word in text.split() for token in (image if word == "<image>" else [_id(word)])]

    def _normalise(self, picture: Any, size: tuple[int, int]) -> Tensor:
        pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR), dtype=np.float32) / 255
        mean, deviation = (np.array(values, dtype=np.float32) for values in (self.image_mean, self.image_std))
        return torch.from_numpy((pixels - mean) / deviation).permute(2, 0, 1)


def _patches(pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return flattened patches of a square picture `[3, side, side]`, equal in both frames."""
    count, width = shape
    grid = round(count**0.5)
    side = pixels.shape[-1] // grid
    blocks = pixels.reshape(3, grid, side, grid, side).permute(1, 3, 0, 2, 4)
    frames = width // (3 * side * side)
    return blocks[:, :, :, None].expand(grid, grid, 3, frames, side, side).reshape(count, width)
