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
        by_norm: Whether the strategy measures what it adds by the norm of the state.
    """

    name: str
    model_type: str
    layers: Mapping[int, Tensor]
    by_norm: bool


@dataclass(frozen=True)
class VectorReader:
    """A program that reads vectors.

    Args:
        name: The program.
        suffix: Of its files.
        write: Writes one.
        first_layer: Index of the first layer that it steers.
        use: How it is told of a file.
        norms: What it does with vectors that are measured by the norm of the state, where the file tells it of that.
    """

    name: str
    suffix: str
    write: Callable[[SteeringVectors, Path], None]
    first_layer: int
    use: str
    norms: str = ""


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
        "norm_match": vectors.by_norm,
    }
    write_whole(path, (json.dumps(content) + "\n").encode())


_ALL = (
    VectorReader(
        "easysteer",
        ".gguf",
        write_gguf,
        0,
        'EasySteer: `VectorSpec(source=PATH, algorithm="direct", scale=STRENGTH, apply=ApplySpec(prompt="all", generation="all"))`',
    ),
    VectorReader(
        "repeng",
        ".gguf",
        write_gguf,
        0,
        "repeng: `ControlModel(model, LAYERS)` with the layers of the file and no other, `ControlVector.import_gguf(PATH)`, "
        "`set_control(vector, STRENGTH)`; repeng 0.4.0 finds the layers of language models alone, its source those of models with pictures "
        "too",
    ),
    VectorReader("llama.cpp", ".gguf", write_gguf, 1, "llama.cpp: `--control-vector-scaled PATH:STRENGTH`"),
    VectorReader(
        "vllm-lens",
        ".json",
        write_vllm_lens,
        0,
        "vllm-lens: `SteeringVector.model_validate(json.load(file))` in `extra_args`; `scale` is the strength",
        "`norm_match` is true in files of strategies that turn states: vllm-lens gives the vector the norm of the state before it adds it, times "
        "`scale`, and does not bring the norm back. A scale of 1 adds as much as there is, so begin far below it.",
    ),
)
READERS: Mapping[str, VectorReader] = {reader.name: reader for reader in _ALL}
"""Programs by name. The index of a layer is that of transformers' list of layers everywhere; llama.cpp steers none with index 0."""
