"""The bundled weights, and folders that `train` wrote: loaded as what their config says they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lvlm_guard.errors import InputError
from lvlm_guard.files import is_file
from lvlm_guard.testbed.architectures import find_architecture
from lvlm_guard.testbed.architectures.architecture import Architecture
from lvlm_guard.testbed.errors import TestbedError

WEIGHTS = Path(__file__).parent / "weights"
DEMO_STACK = Path(__file__).parent / "demo_stack.toml"
"""The demo's stack where nobody names one. `benchmarks/choose_stack.py` chose it on calibration scenes."""

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
)


def load(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, folder: Path = WEIGHTS
) -> tuple[Any, Any]:
    """The bundled model, or one of another folder, ready to generate, and its processor. Never goes to the network.

    Raises:
        TestbedError: a file is missing or cannot be read.
    """
    missing = [name for name in FILES if not is_file(folder / name)]
    if missing:
        raise TestbedError(
            f"testbed: {folder} lacks {', '.join(missing)}. Reinstall lvlm_guard, or train the weights again: "
            f"python -m lvlm_guard.testbed.training --out {folder}"
        )
    try:
        architecture = _architecture(folder)
        model, loaded = architecture.model.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        processor = architecture.processor.from_pretrained(folder, local_files_only=True)
    except Exception as problem:
        raise TestbedError(
            f"testbed: the files in {folder} cannot be read ({type(problem).__name__}: {problem}). "
            f"Reinstall lvlm_guard, or train them again: python -m lvlm_guard.testbed.training --out {folder}"
        ) from problem
    untrained = sorted(loaded["missing_keys"])
    if untrained:
        raise TestbedError(
            f"testbed: {folder} has no weights for {', '.join(untrained[:3])} ({len(untrained)} in all)."
        )
    return model.to(device).eval(), processor


def _architecture(folder: Path) -> Architecture:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError("config.json names no model_type.")
    return find_architecture(config["model_type"])
