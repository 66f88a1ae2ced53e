"""The files of a checkpoint with some of its weights changed: all else is copied as it is, names and layout included."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lvlm_guard.errors import InputError
from lvlm_guard.files import is_file

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
WEIGHTS = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".ot", ".npz", ".tflite")
)
"""Suffixes of files with weights, which are left out where they are not those that are edited."""


@dataclass(frozen=True)
class StoredWeight:
    """A tensor of a checkpoint.

    Args:
        file: The file that holds it.
        name: Its name there.
    """

    file: Path
    name: str


class CheckpointFiles:
    """A local checkpoint in safetensors.

    Args:
        folder: With the config and the weights.

    Raises:
        InputError: It has no weights in safetensors, or they cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = _list_files(folder)
        try:
            self._places = {name: file for file in self._files for name in _list_names(file)}
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"The weights in {folder} cannot be read: {error}.") from error

    def find(self, name: str, value: Tensor) -> StoredWeight:
        """Return which stored tensor a parameter of the loaded model is, by its name and its values.

        Args:
            name: Of the parameter in the model; checkpoints call it otherwise, but for the end.
            value: The parameter.

        Raises:
            InputError: None of the stored tensors is it, or several are.
        """
        ends = {stored: _count_shared_parts(stored, name) for stored in self._places}
        for shared in sorted({count for count in ends.values() if count >= 2}, reverse=True):  # noqa: PLR2004 - module and kind
            equal = [stored for stored, count in ends.items() if count == shared and self._holds(stored, value)]
            if len(equal) == 1:
                return StoredWeight(self._places[equal[0]], equal[0])
            if equal:
                break
        raise InputError(
            f"The checkpoint in {self._folder} does not hold {name} as the loaded model does. Load the model, save it with "
            "save_pretrained, and export from there."
        )

    def _holds(self, stored: str, value: Tensor) -> bool:
        with safetensors.safe_open(self._places[stored], framework="pt") as file:
            if tuple(file.get_slice(stored).get_shape()) != tuple(value.shape):
                return False
            return torch.equal(file.get_tensor(stored).to(value.dtype), value.detach().cpu())

    def write(self, folder: Path, changed: Mapping[StoredWeight, Tensor]) -> None:
        """Write the checkpoint into a folder with some tensors changed; other forms of its weights are left out."""
        for file in sorted(self._folder.iterdir()):
            if is_file(file) and file.suffix.lower() not in WEIGHTS and not file.name.startswith("."):
                shutil.copyfile(file, folder / file.name)
        for file in self._files:
            replaced = {weight.name: value for weight, value in changed.items() if weight.file == file}
            if replaced:
                _replace(file, folder / file.name, replaced)
            else:
                shutil.copyfile(file, folder / file.name)


def _list_files(folder: Path) -> Sequence[Path]:
    if is_file(folder / INDEX):
        try:
            named = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / name for name in sorted(set(named))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / INDEX} cannot be read: {error}.") from error
    if is_file(folder / SINGLE):
        return [folder / SINGLE]
    raise InputError(
        f"{folder} has no weights in safetensors. Load the model, save it with save_pretrained, and export from there."
    )


def _list_names(file: Path) -> list[str]:
    with safetensors.safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _count_shared_parts(left: str, right: str) -> int:
    """Return how many parts of two dotted names are the same, counted from the end."""
    pairs = zip(reversed(left.split(".")), reversed(right.split(".")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _replace(source: Path, target: Path, values: Mapping[str, Tensor]) -> None:
    with safetensors.safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(source) | {name: value.detach().cpu().contiguous() for name, value in values.items()}
    save_file(tensors, target, metadata)
    target.chmod(0o644)
