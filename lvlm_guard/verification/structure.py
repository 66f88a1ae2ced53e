"""What a model is made of, found on a copy without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from lvlm_guard import anatomy
from lvlm_guard.errors import ModelRefused
from lvlm_guard.verification.checks import Unproven
from lvlm_guard.verification.runs import describe


@dataclass(frozen=True)
class ModelPart:
    """Something that strategies need of a model.

    Args:
        name: What it is.
        says: What stands there; empty where there is none.
        needed_for: The strategies that need it.
        remedy: What to do where it is missing.
    """

    name: str
    says: str
    needed_for: str
    remedy: str = ""

    @property
    def is_there(self) -> bool:
        """Whether the model has it."""
        return bool(self.says)


def build_without_weights(config: Any) -> Any:
    """Return the model of a config on the meta device, where tensors have shapes and no numbers.

    Raises:
        Unproven: transformers cannot build it.
    """
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except Exception as error:  # configs and the code of models may raise anything
        raise Unproven(f"transformers cannot build this model from its config: {describe(error)}") from error


def find_parts(model: Any) -> list[ModelPart]:
    """Return the parts of a model that strategies need; its tensors are not read."""
    layers = _decoder_layers(model)
    attending = [layer for layer in layers if _attends(layer)]
    counted = f"{len(attending)} of {len(layers)}" if attending else ""
    return [
        ModelPart(
            "decoder layers", _count(layers), "edits of hidden states, readouts", "Branches and biases need none."
        ),
        ModelPart(
            "attention layers", counted, "edits and observations of attention", "Choose strategies that edit none."
        ),
        ModelPart(
            "vision tower", _count(_vision_layers(model)), "edits inside the vision tower", "Branches need none."
        ),
        ModelPart("head", _describe_head(model), "readouts of early layers", "Choose strategies without readouts."),
    ]


def _decoder_layers(model: Any) -> list[Any]:
    try:
        return list(anatomy.decoder_layers(model))
    except ModelRefused:
        return []


def _vision_layers(model: Any) -> list[Any]:
    try:
        return anatomy.vision_layers(model)
    except ModelRefused:
        return []


def _attends(layer: Any) -> bool:
    """Whether a layer scores keys: its attention has a factor of the scores."""
    return any(hasattr(part, "scaling") for part in layer.modules())


def _count(layers: list[Any]) -> str:
    kinds = ", ".join(dict.fromkeys(type(layer).__name__ for layer in layers))
    return f"{len(layers)} ({kinds})" if layers else ""


def _describe_head(model: Any) -> str:
    head = model.get_output_embeddings()
    if head is None:
        return ""
    tied = ", tied to the embeddings" if anatomy.ties_embeddings(model) else ""
    return f"{type(head).__name__}{tied}"
