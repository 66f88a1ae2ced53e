"""Files of steering vectors in the forms that other programs read."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.extras import import_extra
from lvlm_guard.files import write_whole

ARCHITECTURE = "controlvector"


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """A vector for each of some layers.

    Args:
        name: Of the file, without suffix.
        model_type: Of the model, by its config.
        layers: Vectors `[hidden]` in fp32, by the index of the layer, counted from 0.
        keeps_norms: Whether the strategy keeps the norms of the states.
    """

    name: str
    model_type: str
    layers: Mapping[int, Tensor]
    keeps_norms: bool


@dataclass(frozen=True)
class VectorReader:
    """A program that reads vectors.

    Args:
        suffix: Of its files.
        write: Writes one.
        first_layer: Index of the first layer that it steers.
        use: How it is told of a file.
    """

    suffix: str
    write: Callable[[SteeringVectors, Path], None]
    first_layer: int
    use: str


def write_gguf(vectors: SteeringVectors, path: Path) -> None:
    """Write a control vector: tensors `direction.N`, N the index of the layer whose output it is added to, in fp32."""
    gguf = import_extra("gguf", "export")
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", vectors.model_type)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors.layers))
    for layer, vector in vectors.layers.items():
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vllm_lens(vectors: SteeringVectors, path: Path) -> None:
    """Write what `SteeringVector.model_validate` of vllm-lens takes: fp32 in base64, uncompressed, a row for each layer."""
    rows = torch.stack(list(vectors.layers.values())).contiguous()
    content: dict[str, Any] = {
        "activations": {
            "data": base64.b64encode(rows.numpy().astype("<f4").tobytes()).decode("ascii"),
            "dtype": "float32",
            "shape": list(rows.shape),
        },
        "layer_indices": list(vectors.layers),
        "scale": 1.0,
        "norm_match": vectors.keeps_norms,
    }
    write_whole(path, (json.dumps(content) + "\n").encode())


READERS: Mapping[str, VectorReader] = {
    "easysteer": VectorReader(
        ".gguf", write_gguf, 0, "EasySteer's `direct` algorithm reads a file by its path; `scale` is the strength"
    ),
    "repeng": VectorReader(
        ".gguf", write_gguf, 0, "`ControlVector.import_gguf(path)`; `set_control(vector, strength)`"
    ),
    "llama.cpp": VectorReader(".gguf", write_gguf, 1, "`--control-vector-scaled FILE:STRENGTH`"),
    "vllm-lens": VectorReader(
        ".json",
        write_vllm_lens,
        0,
        "`SteeringVector.model_validate(json.load(file))` in `extra_args`; `scale` is the strength",
    ),
}
"""Programs by name. The index of a layer is that of transformers' list of layers everywhere; llama.cpp steers none with index 0."""
