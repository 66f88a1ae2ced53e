"""Heads of random weights for tiny models, and a tokenizer whose prompts all ask the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import Artefact
from lvlm_guard.strategy.artefacts import describe_model
from lvlm_guard.testing.contract import Words

NAMES, VALUES = ("mug", "spoon", "dining table"), ("red", "green")
MIXING = {
    "existence": [0.5, 0.8, 0.3],
    "is_attribute": [1.5, 0.5, -0.2],
    "which_attribute": [0.4, 0.7, 0.0],
    "is_side": [1.0, 2.0, 0.1],
    "which_side": [0.9, 1.5, 0.0],
    "is_height": [0.8, 1.7, -0.1],
    "which_height": [1.1, 1.9, 0.0],
}
SCALES = {"object": [0.5, 0.25], "attribute": [1.2, 0.1], "relation": [6.0, 0.0]}


class Asking(Words):
    """The letters of the test kit, and prompts that read as one question or as one each."""

    def __init__(self, *questions: str) -> None:
        self.questions = questions
        self.read = 0

    def decode(self, *_: Any, **__: Any) -> str:
        """Return the next question, again and again."""
        self.read += 1
        return self.questions[(self.read - 1) % len(self.questions)]


def make_head(path: Path, model: Any, *, width: int = 32, **settings: Any) -> tuple[Path, dict[str, Tensor]]:
    """Write an artefact of random weights; return its path and tensors."""
    draw = torch.Generator("cpu").manual_seed(7)
    count = len(NAMES) + len(VALUES)
    tensors = {
        "weight": torch.randn(count, width, generator=draw, device="cpu") * 0.4,
        "bias": torch.randn(count, generator=draw, device="cpu"),
        "peaks": torch.zeros(len(NAMES), device="cpu"),
    }
    facts = {"names": list(NAMES), "values": list(VALUES), "mixing": MIXING, "scales": SCALES, **settings}
    Artefact("patch_evidence", tensors, {**describe_model(model), "settings": facts}).save(path)
    return path, tensors


def image_features(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return what the model itself makes of each picture `[tokens, hidden]`."""
    wanted = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    with torch.no_grad():
        output = model.get_image_features(**wanted)
    output = getattr(output, "pooler_output", output)
    return [each.reshape(-1, each.shape[-1]) for each in output]


def logit(odds: Sequence[float]) -> Tensor:
    """Return values as a tensor."""
    return torch.tensor(list(odds))
