"""What a report was made with: parameters of the strategies, versions of the libraries, and the model."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lvlm_guard
from lvlm_guard.call.report import Origin
from lvlm_guard.errors import quote


def describe_origin(config: Any) -> Origin:
    """Return the versions of the libraries, and the name and commit of a model as its config knows them."""
    name = getattr(config, "name_or_path", None) or getattr(config, "_name_or_path", None)
    commit = getattr(config, "_commit_hash", None)
    return Origin(lvlm_guard.__version__, _find_version("transformers"), name or None, commit)


@functools.cache
def _find_version(distribution: str) -> str:
    return version(distribution)


def describe_parameters(strategy: Any) -> dict[str, Any]:
    """Return the parameters of a strategy as plain values: paths as text, functions by name, anything else by its repr."""
    return {field.name: _to_plain(getattr(strategy, field.name)) for field in dataclasses.fields(strategy)}


def _to_plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_to_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(name): _to_plain(entry) for name, entry in value.items()}
    name = getattr(value, "__qualname__", None)
    return quote(value) if name is None else f"{value.__module__}:{name}"
