"""What guarding should hold in memory: arithmetic on sizes, not a measurement.

Weights and caches are exact for dense decoders with growing caches; tests compare both with the tensors of real calls. Logits and
activations are upper estimates of what a forward holds beside them. What a device needs for itself, and what an allocator cannot
use again, are not counted: `Room` leaves a share of the device to them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_guard.bench.running.cost_model import MAIN, BranchLength
from lvlm_guard.bench.running.shapes import Shape
from lvlm_guard.errors import InputError, quote

GROWTH = 65
"""Positions by which the caches of a guarded call grow at once: the new one, and room for those that follow."""
FP32_BYTES = 4
COPIES = 3
"""Of the combined logits in fp32: what the guard returns, generate's copy, and what processors make of it."""
RESERVE = 0.1
"""Share of a device that is left to its context and its allocator, an assumption."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Memory:
    """Bytes of a call by what they are for.

    Args:
        executor: `batched`, `sequential`, or `none` for plain generate.
        batch: Prompts at once.
        weights: All weights and buffers.
        caches: Keys and values of main and branches when the last token is drawn; in the step that joins them, a layer is held twice.
        logits: Of one step, those of main and branches and the combined ones.
        activations: Of the largest prefill, its images encoded.
    """

    executor: str
    batch: int
    weights: int
    caches: int
    logits: int
    activations: int

    @property
    def total(self) -> int:
        """Everything at once, although activations are largest before the caches are."""
        return self.weights + self.caches + self.logits + self.activations

    @property
    def row_bytes(self) -> float:
        """Bytes that one prompt adds."""
        return (self.total - self.weights) / self.batch

    def largest_batch(self, room: float) -> int:
        """Return how many prompts at once fit into `room` bytes; 0 where the weights alone do not leave enough."""
        return max(math.floor((room - self.weights) / self.row_bytes), 0)


def predict_memory(
    shape: Shape,
    weights: int,
    branches: Sequence[BranchLength] = (),
    batch: int = 1,
    *,
    prompt: int = 64,
    tokens: int = 128,
    batched: bool = True,
) -> Memory:
    """Add up the bytes of a call. Nothing is run.

    Args:
        shape: The model.
        weights: Bytes of its weights.
        branches: Further contexts that every row is decoded in; none is plain generate.
        batch: Prompts at once, all as long as `prompt` says.
        prompt: Text tokens of main's prompt; the image's come on top.
        tokens: Tokens of the answer.
        batched: Branches are rows of main's forward, all as long as the longest; else each has a cache of its own.
    """
    rows = (MAIN, *branches)
    contexts = [math.ceil(branch.image * shape.image_tokens) + prompt + branch.text for branch in rows]
    row_positions = [_count_positions(context, tokens - 1, grows=bool(branches)) for context in contexts]
    positions = len(rows) * max(row_positions) if batched and tokens > 1 else sum(row_positions)
    forward_rows = len(rows) if batched else 1
    return Memory(
        executor=("batched" if batched else "sequential") if branches else "none",
        batch=batch,
        weights=weights,
        caches=batch * positions * shape.position_bytes,
        logits=batch * shape.vocabulary * (max(forward_rows, len(rows)) * shape.value_bytes + COPIES * FP32_BYTES),
        activations=batch * max(_count_decoder(shape, max(contexts)), _count_encoder(shape)),
    )


def _count_positions(context: int, steps: int, *, grows: bool) -> int:
    """Return the positions of a row that are made room for: in plain generate as many as it has."""
    return context + (GROWTH * math.ceil(steps / GROWTH) if grows else steps)


def _count_decoder(shape: Shape, positions: int) -> int:
    """Return the bytes that a row holds in a feed-forward block: the residual, its norm, and three inner states."""
    return positions * (2 * shape.width + 3 * shape.ffn) * shape.value_bytes


def _count_encoder(shape: Shape) -> int:
    """Return the bytes that encoding an image holds in the same place, and its features."""
    vision = shape.vision
    if vision is None:
        return 0
    inner = (2 * vision.width + vision.matrices * vision.ffn) * (shape.image_tokens * vision.patches + vision.classes)
    return (inner + shape.image_tokens * shape.width) * shape.value_bytes


def estimate_weights(shape: Shape) -> int:
    """Return the bytes of decoder, head, embeddings and encoder where no config says all of it; norms, biases and projector are left out."""
    vision = shape.vision
    encoder = (
        0 if vision is None else vision.layers * (4 * vision.width**2 + vision.matrices * vision.width * vision.ffn)
    )
    return (shape.weights + shape.vocabulary * shape.width + encoder) * shape.value_bytes


@dataclass(frozen=True)
class Room:
    """The memory of a device.

    Args:
        size: Its bytes.
    """

    size: float

    @classmethod
    def parse(cls, text: str) -> Room:
        """Read a size such as `80GB` (10^9 bytes each) or `24GiB` (2^30).

        Raises:
            InputError: It is none.
        """
        match = SIZE.fullmatch(text)
        size = float(match[1]) * UNITS[match[2].upper()] if match and match[2].upper() in UNITS else 0.0
        if not size:
            raise InputError(f"--gpu is a size such as 80GB or 24GiB, got {quote(text)}.")
        return cls(size)

    @property
    def usable(self) -> float:
        """Bytes that are not left to the device."""
        return self.size * (1 - RESERVE)
