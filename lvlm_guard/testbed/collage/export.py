"""Writing a built model as a folder that transformers 4 and 5 both read, and that is complete or not there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lvlm_guard.testbed.files import clear_failure, write_whole
from lvlm_guard.testbed.model_files import rename_published, split_processor, write_json

CONFIG = "config.json"
"""Written last: a folder without it is no model."""

PUBLISHED = (
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
)
"""Prefixes of weights in memory, and in published checkpoints of LLaVA."""


def export(model: Any, processor: Any, folder: Path, texts: Mapping[str, str]) -> None:
    """Write weights in half precision, configs, tokenizer, picture preparation and some texts into a folder that is there.

    Everything is written beside its place and moved there once all of it is whole, the config last.

    Raises:
        TestbedError: It could not be written; what was in the folder before is still there.
    """
    with clear_failure(folder):
        draft = Path(tempfile.mkdtemp(dir=folder, prefix=".export."))
        try:
            _export(model, processor, draft, texts)
            names = sorted((file.name for file in draft.iterdir()), key=lambda name: (name == CONFIG, name))
            for name in names:
                (draft / name).replace(folder / name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _export(model: Any, processor: Any, draft: Path, texts: Mapping[str, str]) -> None:
    weights = {
        rename_published(name, PUBLISHED): value
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    write_whole(draft / "model.safetensors", save(_halved(weights), metadata={"format": "pt"}))
    model.generation_config.save_pretrained(draft)
    processor.save_pretrained(draft)
    split_processor(draft, processor)
    for name, text in texts.items():
        write_whole(draft / name, text.encode("utf-8"))
    write_json(draft / CONFIG, _describe(model))


def _halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().half().contiguous() for name, value in weights.items()}


def _describe(model: Any) -> dict[str, Any]:
    """Return the config, with the base of the rotary embedding where version 4 looks for it as well."""
    config: dict[str, Any] = model.config.to_dict()
    config.update(architectures=[type(model).__name__], dtype="float32")  # in memory; files hold halves
    rope = config["text_config"].get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["text_config"]["rope_theta"] = rope["rope_theta"]
    return config
