"""The JSON files of a model folder, as the testbed writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    raise TypeError(f"export: cannot write {value!r} to JSON.")
