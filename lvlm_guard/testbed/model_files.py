"""The JSON files of a model folder, as the testbed writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lvlm_guard.testbed.files import write_whole


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file holds."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole, with its keys in order and dtypes by their names."""
    text = json.dumps(content, indent=2, sort_keys=True, default=_plain) + "\n"
    write_whole(path, text.encode("utf-8"))


def split_processor(folder: Path, processor: Any) -> None:
    """Write the special tokens and the picture preparation of a saved processor where version 4 of transformers looks for them."""
    tokenizer = read_json(folder / "tokenizer_config.json")
    special = tokenizer.pop("extra_special_tokens", None) or tokenizer["additional_special_tokens"]
    tokenizer.update(tokenizer_class="PreTrainedTokenizerFast", additional_special_tokens=special)
    write_json(folder / "tokenizer_config.json", tokenizer)
    shared = read_json(folder / "processor_config.json")
    pictures = shared.pop("image_processor", None) or processor.image_processor.to_dict()
    pictures["image_processor_type"] = type(processor.image_processor).__name__.removesuffix("Pil")
    write_json(folder / "preprocessor_config.json", pictures)
    write_json(folder / "processor_config.json", shared)


def rename_published(name: str, prefixes: Sequence[tuple[str, str]]) -> str:
    """Return a weight's name in a published checkpoint, from pairs of its prefix in memory and in the checkpoint.

    Raises:
        ValueError: None of the prefixes is its own.
    """
    for inner, published in prefixes:
        if name.startswith(inner):
            return published + name.removeprefix(inner)
    raise ValueError(f"export: no published name for weight {name!r}.")


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    raise TypeError(f"export: cannot write {value!r} to JSON.")
