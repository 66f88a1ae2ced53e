"""What is ours of the model: the projector, the table of places and low-rank changes of the language model, in one small file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lvlm_guard.errors import shorten
from lvlm_guard.testbed.errors import TestbedError
from lvlm_guard.testbed.files import write_whole

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers that have a low-rank change, in every block."""


@dataclass(frozen=True)
class Delta:
    """Everything that teaching changed.

    Args:
        changes: Factors A (rank, in) and B (out, rank) of each change, by the layer's name in the language model and the
            factor's: "layers.0.mlp.up_proj.A". A weight becomes weight + scale * B @ A.
        projector: The weights of the projector, by name.
        places: The tower's table of places, shape (tokens, channels).
        scale: What the product of the factors counts.
    """

    changes: Mapping[str, Tensor]
    projector: Mapping[str, Tensor]
    places: Tensor
    scale: float

    def write(self, path: Path) -> None:
        """Write it in half precision, whole or not at all.

        Raises:
            TestbedError: It could not be written.
        """
        tensors = {
            **{f"language.{name}": value for name, value in self.changes.items()},
            **{f"projector.{name}": value for name, value in self.projector.items()},
            "places": self.places,
        }
        content = {name: value.half().contiguous() for name, value in tensors.items()}
        write_whole(path, save(content, metadata={"format": "pt", "scale": repr(self.scale)}))


def read_delta(path: Path) -> Delta:
    """Return the delta of a file, in fp32.

    Raises:
        TestbedError: The file is not there, or holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
            scale = float(file.metadata()["scale"])
        return Delta(_below(tensors, "language."), _below(tensors, "projector."), tensors["places"], scale)
    except Exception as problem:
        # safetensors raises an error type of its own, and what the system says.
        raise TestbedError(
            f"{path} cannot be read as a delta of the collage model ({type(problem).__name__}: {problem}). Reinstall "
            "lvlm_guard, or train it again with --train."
        ) from problem


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def apply_delta(model: Any, delta: Delta) -> None:
    """Merge a delta into the weights of an assembled model, in place.

    Raises:
        TestbedError: It is a delta of a model of another shape; the model is then not to be used.
    """
    try:
        model.model.multi_modal_projector.load_state_dict(dict(delta.projector))
        model.model.vision_tower.places.copy_(_alike(delta.places, model.model.vision_tower.places))
        for name in {name.rpartition(".")[0] for name in delta.changes}:
            weight = model.model.language_model.get_parameter(f"{name}.weight")
            change = delta.changes[f"{name}.B"] @ delta.changes[f"{name}.A"]
            weight.add_(_alike(change, weight).to(weight.dtype), alpha=delta.scale)
    except (RuntimeError, KeyError, AttributeError, ValueError) as problem:
        raise TestbedError(
            f"the delta does not fit the model it is applied to ({shorten(str(problem), 200)}): it was made for another."
        ) from problem


def _alike(value: Tensor, target: Tensor) -> Tensor:
    if value.shape != target.shape:
        raise ValueError(f"shape {tuple(value.shape)} where {tuple(target.shape)} was expected")
    return value
