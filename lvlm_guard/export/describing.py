"""What manifests of exports say: of which stack and artefacts they were made, and what was done."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lvlm_guard
from lvlm_guard.export.constant_edits import ConstantEdit
from lvlm_guard.files import is_file
from lvlm_guard.host.stack import Stack

FORMAT = 1


def describe_source(kind: str, model_id: str, stack: Stack) -> dict[str, Any]:
    """Return what an export was made of: model, stack, and the SHA-256 of every file that the stack names."""
    return {
        "format": FORMAT,
        "kind": kind,
        "lvlm_guard": lvlm_guard.__version__,
        "model": model_id,
        **stack.to_dict(),
        "artefacts": {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in _list_artefacts(stack)},
    }


def describe_edits(edits: Sequence[ConstantEdit]) -> list[dict[str, Any]]:
    """Return each edit without its vectors."""
    return [
        {
            "strategy": edit.strategy,
            "tower": edit.tower,
            "layer": edit.layer,
            "site": edit.site,
            "operation": type(edit.operation).__name__.lower(),
            "strength": edit.operation.strength,
        }
        for edit in edits
    ]


def _list_artefacts(stack: Stack) -> Iterator[Path]:
    for strategy in stack:
        for field in dataclasses.fields(strategy):  # type: ignore[arg-type] # strategies are dataclasses
            value = getattr(strategy, field.name)
            if isinstance(value, Path) and is_file(value):
                yield value
