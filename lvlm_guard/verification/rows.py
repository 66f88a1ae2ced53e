"""Rows of the registry: read, checked and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic import ValidationError as PydanticError

from lvlm_guard.errors import InputError, quote, shorten
from lvlm_guard.files import write_whole
from lvlm_guard.verification.checks import Check, CheckName, Status
from lvlm_guard.verification.results import Verification, VerifiedModel

LARGEST_ROW = 2**20
"""Bytes of a file that is read as a row."""
WAY_OUT = "A row is what lvlm-guard verify --out writes, unchanged."
Text = Annotated[str, Field(min_length=1, max_length=200)]
Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Model(_Part):
    name: Text
    type: Text
    architecture: Text
    revision: Text | None
    weights: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    dtype: Text
    device: Text
    quantisation: str


class _Check(_Part):
    check: CheckName
    stack: str
    status: Status
    figure: Figure | None
    tolerance: Figure | None
    says: Annotated[str, Field(max_length=2000)]
    seconds: Figure


class _Row(_Part):
    format: Literal[1]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    model: _Model
    versions: Annotated[dict[str, Text], Field(min_length=1)]
    checks: Annotated[list[_Check], Field(min_length=1)]


def read_row(path: Path) -> Verification:
    """Read a row of the registry.

    Raises:
        InputError: The file cannot be read, or is no row; the message names the first entry at fault.
    """
    values = _parse(path)
    try:
        row = _Row.model_validate(values)
    except PydanticError as error:
        raise InputError(f"{path}: {_explain(error)}. {WAY_OUT}") from None
    _check_consistency(path, row)
    checks = tuple(Check(**check.model_dump()) for check in row.checks)
    return Verification(checks, VerifiedModel(**row.model.model_dump()), row.versions, row.date, row.format)


def write_row(verification: Verification, path: Path) -> None:
    """Write a row, whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    write_whole(path, (json.dumps(verification.to_dict(), indent=1, allow_nan=False) + "\n").encode())


def _parse(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_ROW:
            raise InputError(f"{path} has more than {LARGEST_ROW} bytes, so it is no row. {WAY_OUT}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text. {WAY_OUT}") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}. {WAY_OUT}") from error


def _explain(error: PydanticError) -> str:
    """Return the first fault: where it is, what is wrong, and what stands there."""
    first = error.errors()[0]
    place = shorten(".".join(map(str, first["loc"])) or "the file", 200)
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "extra_forbidden":
        return f"{place} is no key of a row"
    return f"{place}: {first['msg'].lower()}, got {quote(first['input'])}"


def _check_consistency(path: Path, row: _Row) -> None:
    """Refuse what no verification writes: a check twice, a pass beyond its limit, a figure that nothing ran for."""
    names = [(check.stack, check.check) for check in row.checks]
    for number, check in enumerate(row.checks):
        place = f"{path}: checks.{number} ({check.check})"
        if names.index((check.stack, check.check)) < number:
            raise InputError(f"{place} stands there twice. {WAY_OUT}")
        if check.status == "pass" and not _is_within(check):
            raise InputError(f"{place} passes with {check.figure}, beyond its limit {check.tolerance}. {WAY_OUT}")


def _is_within(check: _Check) -> bool:
    if check.figure is None or check.tolerance is None:
        return check.figure is not None
    return check.figure >= check.tolerance if check.check == "effect" else check.figure <= check.tolerance
