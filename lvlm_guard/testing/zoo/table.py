"""The table of every mechanism on every model type, as it is kept and as it is shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from lvlm_guard.errors import InputError, nearest
from lvlm_guard.files import write_whole
from lvlm_guard.testing.zoo.cells import MechanismCell

FILE = "table.json"
NOT_MEASURED = "not measured"
"""Shown where an entry comes from a version that knew fewer mechanisms."""
PACKAGES = ("lvlm-guard", "transformers", "torch")


@dataclass(frozen=True)
class Entry:
    """One model type.

    Args:
        cells: Cells by mechanism; empty where no model is built.
        skipped: Why no model is built.
        versions: Versions of the packages that its cells come from.
    """

    cells: Mapping[str, MechanismCell] = field(default_factory=dict)
    skipped: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain values."""
        cells = {mechanism: cell.to_dict() for mechanism, cell in self.cells.items()}
        return {"skipped": self.skipped} if self.skipped else {"versions": dict(self.versions), "cells": cells}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Entry:
        """Return the entry that `to_dict` wrote."""
        cells = {mechanism: MechanismCell.from_dict(cell) for mechanism, cell in values.get("cells", {}).items()}
        return cls(cells, values.get("skipped", ""), values.get("versions", {}))


def load_table() -> dict[str, Entry]:
    """Return the table that comes with the library, by model type."""
    text = resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    return {name: Entry.from_dict(values) for name, values in json.loads(text).items()}


def save_table(table: Mapping[str, Entry], path: Path) -> None:
    """Write a table whole."""
    values = {name: table[name].to_dict() for name in sorted(table)}
    write_whole(path, (json.dumps(values, indent=1) + "\n").encode())


def installed_versions() -> dict[str, str]:
    """Return the versions that a probe run now says something about."""
    return {package: metadata.version(package) for package in PACKAGES}


def check_names(names: Iterable[str], choices: Iterable[str]) -> None:
    """Refuse a model type that does not exist.

    Raises:
        InputError: It is unknown; the message names the nearest.
    """
    choices = list(choices)
    for name in names:
        if name not in choices:
            raise InputError(f"No model type {name!r}.{nearest(name, choices)}")


def mechanisms_of(table: Mapping[str, Entry]) -> list[str]:
    """Return the mechanisms of a table, in its order."""
    return list(dict.fromkeys(mechanism for entry in table.values() for mechanism in entry.cells))


def status_of(entry: Entry, mechanism: str) -> str:
    """Return the status of a mechanism on a model type, which an entry of an older version may lack."""
    return entry.cells[mechanism].status if mechanism in entry.cells else NOT_MEASURED


def count_statuses(table: Mapping[str, Entry]) -> dict[str, Counter[str]]:
    """Return how many types have each status, by mechanism."""
    counts: dict[str, Counter[str]] = {}
    for entry in table.values():
        for mechanism, cell in entry.cells.items():
            counts.setdefault(mechanism, Counter())[cell.status] += 1
    return counts
