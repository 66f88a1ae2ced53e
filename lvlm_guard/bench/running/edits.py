"""Whether a run's items and pictures are still what they were: files may be edited or replaced after it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running.sealing import Ledger
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import InputError

PICTURES = "pictures.jsonl"
LISTED = 3
DERIVED = ("habit", "expected", "unexpected")
"""Entries of `extra` that suites compute from their other items, so that one edit would count as many."""

Digests = Mapping[str, str]
"""SHA-256 of the files of pictures, by the name of the picture."""


def find_changed_items(before: Sequence[Item], after: Sequence[Item]) -> list[str]:
    """Name the items of a run that are not as they were: ids, with the fields that differ or that they are gone."""
    by_id = {item.id: item for item in after}
    described = ((item.id, _describe_difference(item, by_id.get(item.id))) for item in before)
    return [f"{item_id} ({difference})" for item_id, difference in described if difference]


def _describe_difference(before: Item, after: Item | None) -> str:
    if after is None:
        return "gone"
    fields = [field.name for field in dataclasses.fields(Item) if field.name != "extra"]
    differing = [name for name in fields if _plain(getattr(before, name)) != _plain(getattr(after, name))]
    shared = (before.extra.keys() & after.extra.keys()) - set(DERIVED)
    differing += sorted(key for key in shared if _plain(before.extra[key]) != _plain(after.extra[key]))
    return ", ".join(differing)


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))


def digest_pictures(suite: Suite, data: Path | None, items: Sequence[Item]) -> dict[str, str]:
    """Hash the file of every picture of some items, by name; nothing of a suite that does not say where its files are."""
    if (find := getattr(suite, "picture_file", None)) is None:
        return {}
    names = sorted({item.image for item in items if item.image is not None})
    places: dict[str, Path | None] = {name: find(data, name) for name in names}
    return {name: _digest(place) for name, place in places.items() if place is not None}


def digest_files(suite: Suite, data: Path | None) -> dict[str, str]:
    """Hash the files that a suite's measures read besides the items, such as lists of words, by name.

    Raises:
        InputError: One of them is missing or cannot be read.
    """
    find = getattr(suite, "scoring_files", None)
    return {} if find is None else {name: _digest(path) for name, path in find(data).items()}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}.") from error


def digest_whole(digests: Digests) -> str | None:
    """Return one SHA-256 of those of all pictures; None where there are none."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest() if digests else None


def find_changed_files(before: Digests, after: Digests) -> list[str]:
    """Name the files, or the pictures, that are not as they were."""
    return [
        f"{name} ({'another file' if name in after else 'gone'})" for name in before if before[name] != after.get(name)
    ]


def list_first(changed: Sequence[str]) -> str:
    """Write the first few of what changed, and how many more there are."""
    more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
    return f"{', '.join(changed[:LISTED])}{more}"


def format_pictures(folder: Path, check: str | None, digests: Mapping[str, Digests]) -> bytes:
    """Return the file of the digests of all suites' pictures."""
    ledger = _ledger(folder, check)
    rows = [
        {"suite": suite, "picture": name, "sha256": digest}
        for suite, by_name in digests.items()
        for name, digest in by_name.items()
    ]
    return b"".join(ledger.line(row, number) for number, row in enumerate(rows, 1))


def read_pictures(
    folder: Path, check: str | None, suites: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """Read the digests of a run's pictures by suite, and compare them with the one in its manifest.

    Raises:
        InputError: They are not those that the run was begun with; names the file, and the line where one is at fault.
    """
    digests: dict[str, dict[str, str]] = {suite: {} for suite in suites}
    ledger = _ledger(folder, check)
    for number, line in enumerate(ledger.lines(), 1):
        row = ledger.values(line, number)
        if row.keys() != {"suite", "picture", "sha256"} or row["suite"] not in digests:
            raise ledger.damaged(number, "holds no picture of this run")
        digests[row["suite"]][row["picture"]] = row["sha256"]
    for suite, by_name in digests.items():
        if digest_whole(by_name) != suites[suite].get("pictures_sha256"):
            raise InputError(
                f"{ledger.path} does not hold the pictures that {suite} was run with. Restore it from a copy, or begin the run "
                "in another folder."
            )
    return digests


def _ledger(folder: Path, check: str | None) -> Ledger:
    return Ledger(folder / PICTURES, None if check is None else f"{check}/pictures")
