"""What one architecture has that the others have differently; all else of the testbed asks no model what it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lvlm_guard.testbed.architectures.picture import Span

VisionEncoder = Callable[[Tensor], Tensor]
"""Pixels (batch, 3, 64, 64) to features (batch, 1 + image tokens, width): a summary, then one row per image token."""


@dataclass(frozen=True)
class Architecture:
    """One architecture, by the `model_type` of its config.

    Args:
        name: The `model_type`.
        parts: What it is built of, for the model card.
        model: The class in transformers.
        processor: The class of its processor.
        span: How a picture stands in its prompts.
        build_config: Its config at the size that is trained.
        build_model: An untrained model of a config and a seed.
        build_processor: Its processor, made offline.
        tower: What the first stage trains and the second leaves alone.
        width: Size of the features the tower gives for one image token, before they are projected.
        vision_encoder: How a model sees a batch of pictures in training. Equal to what its own forward sees.
        project: Features (batch, image tokens, width) to image tokens (batch, image tokens, hidden).
        place: What reading a token's own row and column counts in the loss of the two stages.
        prepare_tower: Prepares the tower for training where it is, and returns the parts of it worth compiling.
        published: Prefixes of weights here, and in published checkpoints of this architecture.
        minutes: What the full step counts take on two CPU cores: measured for LLaVA, with other work beside it; for
            Qwen2-VL estimated from the CPU time of single steps, on a quiet machine.
        files: What a folder has beside the files of any architecture.
    """

    name: str
    parts: str
    model: type[Any]
    processor: type[Any]
    span: Span
    build_config: Callable[[], Any]
    build_model: Callable[[Any, int], Any]
    build_processor: Callable[[], Any]
    tower: Callable[[Any], nn.Module]
    width: Callable[[Any], int]
    vision_encoder: Callable[[Any], VisionEncoder]
    project: Callable[[Any, Tensor], Tensor]
    place: tuple[float, float]
    prepare_tower: Callable[[Any], Sequence[nn.Module]]
    published: tuple[tuple[str, str], ...]
    minutes: float
    files: tuple[str, ...] = ()
