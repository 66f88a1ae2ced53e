"""Read the manifest of a run back: its format, its check value and its shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic import ValidationError as PydanticError

from lvlm_guard.bench import files
from lvlm_guard.bench.running.sealing import CHECK, parse_object, remove_check
from lvlm_guard.errors import InputError, quote, shorten

FORMAT = 3
UNSEALED = 1
"""The format of runs that were begun before lines and manifests had check values."""

READABLE = (UNSEALED, 2, FORMAT)
"""The formats that this version reads; in those before the last, no item is skipped and no picture is hashed."""

ADDED = ("without_picture", "pictures_sha256", "files_sha256")
"""What the description of a suite lacks in older formats."""

PLACE = "manifest"
REFUSE, SKIP = "refuse", "skip"
"""What becomes of items whose picture is missing."""

UNRECORDED: Mapping[str, Mapping[str, Any]] = {"scenes": {"design": "one_sided"}}
"""Arguments of suites that older manifests lack, and what was so in all their runs. They are always written now."""

WAY_OUT = "Restore it from a copy, or begin the run in another folder."
_NAME = re.compile(r"[\w.+=@,-]+")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or set(name) == {"."}:
        raise ValueError(f"{quote(name)} cannot be the name of a file")
    return name


Name = Annotated[str, AfterValidator(_check_name)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Model(_Part):
    id: str
    architecture: str = Field(alias="class")
    config: str
    weights: str
    dtype: str
    attention: Any


class _Entry(_Part):
    name: str
    params: dict[str, Any]


class _System(_Part):
    stack: list[_Entry]
    role: Literal["control", "stack"]
    decoding: Literal["greedy", "sampling"]
    matched: list[str]


class _LeftOut(_Part):
    pictures: int = Field(ge=0)
    items: int = Field(ge=0)
    first: list[str]


class _Suite(_Part):
    name: str
    title: str
    arguments: dict[str, Any]
    parser: str
    levels: list[str]
    licence: str
    homepage: str
    items: int = Field(ge=0)
    pictures: int = Field(ge=0)
    ids_sha256: str
    prompts_sha256: str
    items_sha256: str
    unusable_rows: int = Field(ge=0)
    problems: list[str]
    left_out: _LeftOut


class _Hardware(_Part):
    device: str
    accelerator: str | None
    system: str
    machine: str
    threads: int


class _Manifest(_Part):
    model: _Model
    seed: int
    batch: int = Field(ge=1)
    limit: int | None
    data: str | None
    missing_pictures: Literal["refuse", "skip"]
    generation: dict[str, Any]
    systems: dict[Name, _System]
    without: list[str]
    suites: dict[Name, _Suite]
    versions: dict[str, str]
    hardware: _Hardware


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; one of an older format is completed by what was so in all its runs.

    Raises:
        InputError: It cannot be read, is of a format that this version does not know, was edited, or lacks something.
    """
    try:
        manifest = parse_object(files.read_if_there(path))
    except ValueError as error:
        raise InputError(f"{path} {error}. {WAY_OUT}") from error
    version = manifest.get("format")
    if type(version) is not int or version not in READABLE:
        raise InputError(
            f"{path.parent} holds a run of format {quote(version)}; this version reads formats {READABLE[0]} to {READABLE[-1]}. "
            "Read it with the version of lvlm_guard that wrote it."
        )
    if version == UNSEALED and CHECK not in manifest:
        return _add_unrecorded(_check(path, _complete(manifest)))
    try:
        remove_check(manifest, PLACE)
    except ValueError as error:
        raise InputError(f"{path} {error}. {WAY_OUT}") from error
    return _add_unrecorded(_check(path, manifest))


def _add_unrecorded(manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the arguments that suites had before there was a choice."""
    suites = {
        name: {**suite, "arguments": {**UNRECORDED.get(suite["name"], {}), **suite["arguments"]}}
        for name, suite in manifest["suites"].items()
    }
    return {**manifest, "suites": suites}


def _complete(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Add what manifests of the older format lack: every item had its picture, or the run stopped."""
    suites = manifest.get("suites")
    none_left_out = {"pictures": 0, "items": 0, "first": []}
    if isinstance(suites, dict):
        suites = {
            name: {"left_out": none_left_out, **suite} if isinstance(suite, dict) else suite
            for name, suite in suites.items()
        }
    return {"missing_pictures": REFUSE, **manifest, "suites": suites}


def _check(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    try:
        _Manifest.model_validate(manifest)
    except PydanticError as error:
        first = error.errors()[0]
        place = shorten(".".join(map(str, first["loc"])), 200)
        raise InputError(f"{path}: {place}: {first['msg'].lower()}, got {quote(first['input'])}. {WAY_OUT}") from None
    return manifest
