"""What a picture is to every architecture: its grid of image tokens, the scale of its pixels, its place in a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvlm_guard.testbed.world import drawing
from lvlm_guard.testbed.world.scenes import Scene

TOKEN = 8
"""Side of what one image token shows, in pixels."""

ACROSS = drawing.SIDE // TOKEN
IMAGE_TOKENS = ACROSS**2
MEAN = 0.5
SPREAD = 0.25
"""Pixels reach the model as (value - MEAN) / SPREAD, where value runs from 0 to 1."""


@dataclass(frozen=True)
class Span:
    """How a picture stands in a prompt.

    `before` and `after` are the token ids that fence the image tokens. `positions` has one row per axis of the rotary
    embedding and one entry per image token, counted from the first of them; the text goes on `advance` further.
    """

    positions: tuple[tuple[int, ...], ...]
    advance: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        """The length of the whole span, fences included."""
        return len(self.before) + IMAGE_TOKENS + len(self.after)

    @property
    def places(self) -> tuple[NDArray[np.int64], int]:
        """Return positions of all its tokens from the first one's, shape (axes, columns), and that of the token after it."""
        first, last = len(self.before), len(self.before) + self.advance
        fences = (np.arange(first), np.arange(last, last + len(self.after)))
        each = [np.concatenate((fences[0], first + np.array(row), fences[1])) for row in self.positions]
        return np.stack(each), last + len(self.after)

    @property
    def axes(self) -> int:
        """How many position ids a token has."""
        return len(self.positions)


def pixel_batch(batch: Sequence[Scene]) -> Tensor:
    """The pictures scaled as any processor here scales them: float, shape (batch, 3, 64, 64)."""
    stacked = np.stack([scene.pixels for scene in batch])
    return (torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255 - MEAN) / SPREAD
