"""Write a model folder that transformers 4 and 5 both read: the layout and names of published checkpoints.

What `save_pretrained` of version 5 writes, version 4 loads with a fresh, untrained vision tower and only a warning.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lvlm_guard.testbed.architectures.architecture import Architecture
from lvlm_guard.testbed.files import clear_failure, write_whole
from lvlm_guard.testbed.model_files import rename_published, split_processor, write_json


def export(architecture: Architecture, model: Any, folder: Path) -> None:
    """Writes weights in half precision, both configurations, tokenizer, picture preparation and chat template.

    The files are written beside their places and moved there once all of them are whole.

    Raises:
        TestbedError: They could not be written; what was in the folder before is still there.
    """
    with clear_failure(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as name:
        draft = Path(name)
        _export(architecture, model, draft)
        for file in sorted(draft.iterdir()):
            file.replace(folder / file.name)


def _export(architecture: Architecture, model: Any, folder: Path) -> None:
    weights = {
        rename_published(name, architecture.published): value.half().contiguous()
        for name, value in _weights(model).items()
    }
    write_whole(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    config = model.config.to_dict()
    config.update(architectures=[architecture.model.__name__], dtype="float16")
    _rename_sections(config["text_config"])
    write_json(folder / "config.json", config)
    model.generation_config.save_pretrained(folder)
    processor = architecture.build_processor()
    processor.save_pretrained(folder)
    split_processor(folder, processor)


def _rename_sections(text: dict[str, Any]) -> None:
    """Give a rotary embedding in several axes the names of version 4, which version 5 reads as well."""
    rope = text.get("rope_parameters") or {}
    if "mrope_section" in rope:
        del text["rope_parameters"]
        text["rope_theta"] = rope["rope_theta"]
        text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items() if value.dtype.is_floating_point}
