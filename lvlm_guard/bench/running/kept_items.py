"""The items of a run as its folder keeps them: one a line, and digests of all of them in the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running.sealing import Ledger
from lvlm_guard.errors import InputError

ITEMS = "items.jsonl"


def digest(items: Sequence[Item]) -> dict[str, str]:
    """Hash the ids, the prompts and all fields of some items in their order, with SHA-256."""
    return {
        "ids_sha256": _hash(item.id for item in items),
        "prompts_sha256": _hash(json.dumps(item.prompt) for item in items),
        "items_sha256": _hash_whole(items),
    }


def _hash_whole(items: Sequence[Item]) -> str:
    return _hash(json.dumps(_to_plain(item), sort_keys=True) for item in items)


def _hash(values: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(values).encode("utf-8")).hexdigest()


def check_item(suite: str, item: Item) -> None:
    """Check that an item can be kept as JSON.

    Raises:
        InputError: It cannot; names the suite and the item.
    """
    try:
        json.dumps(_to_plain(item), ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{suite}: the item {item.id!r:.80} cannot be kept as JSON: {error}.") from error


def format_items(folder: Path, check: str | None, items: Mapping[str, Sequence[Item]]) -> bytes:
    """Return the file of the items of all suites."""
    ledger = _ledger(folder, check)
    every = [{"suite": suite, **_to_plain(item)} for suite, suite_items in items.items() for item in suite_items]
    return b"".join(ledger.line(values, number) for number, values in enumerate(every, 1))


def read_items(folder: Path, check: str | None, suites: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Item]]:
    """Read the items of a run by suite, and compare them with the digests that its manifest has of each suite.

    Raises:
        InputError: They are not those that the run was begun with; names the file, and the line where one is at fault.
    """
    items: dict[str, list[Item]] = {suite: [] for suite in suites}
    ledger = _ledger(folder, check)
    for number, line in enumerate(ledger.lines(), 1):
        values = ledger.values(line, number)
        try:
            items[values.pop("suite")].append(Item(**values))
        except (KeyError, TypeError) as error:
            raise ledger.damaged(number, f"holds no item of this run: {error!r:.200}") from error
    for suite, suite_items in items.items():
        if _hash_whole(suite_items) != suites[suite]["items_sha256"]:
            raise InputError(
                f"{ledger.path} does not hold the items that {suite} was run with. Remove that file, and the command that "
                "began the run writes it again."
            )
    return items


def _ledger(folder: Path, check: str | None) -> Ledger:
    return Ledger(folder / ITEMS, None if check is None else f"{check}/items")


def _to_plain(item: Item) -> dict[str, Any]:
    """Return the fields of an item as JSON gives them back: keys are texts, and lists stand for tuples."""
    values = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)} | {"extra": dict(item.extra)}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
