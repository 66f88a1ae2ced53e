"""Weights of EfficientNet-Lite0 as they are published, with their batch norms folded into the convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lvlm_guard.testbed.collage.vision import STAGES
from lvlm_guard.testbed.errors import TestbedError

EPSILON = 1e-3
"""Added to a variance by the batch norms of EfficientNet."""


def read_vision_weights(path: Path) -> dict[str, Tensor]:
    """Return weights by their names in a `Lite0Model`, without its places.

    Raises:
        TestbedError: The file cannot be read, or does not hold the weights that are expected.
    """
    try:
        published = torch.load(path, weights_only=True, map_location="cpu")
        return fold(published)
    except Exception as problem:
        # torch raises whatever its archive, pickle or storage reader stumbled over.
        raise TestbedError(
            f"{path} cannot be read as the weights of EfficientNet-Lite0 ({type(problem).__name__}: {problem}). Delete it "
            "and build again."
        ) from problem


def fold(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each convolution with what its batch norm does to the output in it."""
    weights = {}
    for name, convolution, norm in _places():
        gain = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + EPSILON).sqrt()
        weights[f"{name}.weight"] = published[f"{convolution}.weight"] * gain[:, None, None, None]
        weights[f"{name}.bias"] = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * gain
    return weights


def _places() -> Iterator[tuple[str, str, str]]:
    """Yield the name of each convolution here, and of it and of its batch norm as published."""
    yield "stem", "_conv_stem", "_bn0"
    widened = [expansion > 1 for count, _, _, expansion, _ in STAGES for _ in range(count)]
    for at, wide in enumerate(widened):
        inner = f"_blocks.{at}"
        if wide:
            yield f"blocks.{at}.expand", f"{inner}._expand_conv", f"{inner}._bn0"
        yield f"blocks.{at}.depthwise", f"{inner}._depthwise_conv", f"{inner}._bn1"
        yield f"blocks.{at}.reduce", f"{inner}._project_conv", f"{inner}._bn2"
    yield "head", "_conv_head", "_bn1"
