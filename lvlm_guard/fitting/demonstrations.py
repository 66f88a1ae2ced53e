"""Demonstrations to fit on, from a JSONL file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lvlm_guard.errors import InputError
from lvlm_guard.request import picture_loading
from lvlm_guard.strategy.fitters import Demonstration

FIELDS = ("image", "prompt", "correct", "hallucinated")
MOST_REPORTED = 5


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Read the demonstrations of a JSONL file, a line each; paths of pictures are relative to the file.

    Raises:
        InputError: The file cannot be read, is empty, or has invalid lines, which are named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"--data {path} cannot be read: {error}.") from None
    demonstrations, faults = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            demonstration, fault = _parse_line(line, path.parent)
            demonstrations.append(demonstration)
            faults += [f"line {number}: {fault}"] if fault else []
    if faults:
        more = f" ({len(faults) - MOST_REPORTED} more)" if len(faults) > MOST_REPORTED else ""
        raise InputError(f"{path} has rows that cannot be used: {'; '.join(faults[:MOST_REPORTED])}{more}.")
    if not demonstrations:
        raise InputError(f"{path} holds no demonstrations: a line is an object with {', '.join(FIELDS)}.")
    return [demonstration for demonstration in demonstrations if demonstration is not None]


def _parse_line(line: str, folder: Path) -> tuple[Demonstration | None, str]:
    """Return the demonstration of a line, or what is wrong with it."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        return None, f"not JSON ({error})"
    if not isinstance(row, dict):
        return None, f"an object is wanted, got {type(row).__name__}"
    invalid = [name for name in FIELDS if not isinstance(row.get(name), str) or not row[name].strip()]
    if invalid:
        return None, f"text is wanted for {', '.join(invalid)}"
    if row["correct"] == row["hallucinated"]:
        return None, "correct and hallucinated are the same"
    picture = folder / row["image"]
    try:
        picture_loading.read_picture(picture)
    except InputError as error:
        return None, str(error)
    return Demonstration(picture, row["prompt"], row["correct"], row["hallucinated"]), ""
