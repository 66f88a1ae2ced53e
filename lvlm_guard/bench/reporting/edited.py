"""What a report says of items and pictures that were edited after the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvlm_guard.bench.running.choosing import build_suite
from lvlm_guard.bench.running.edits import (
    digest_files,
    digest_pictures,
    find_changed_files,
    find_changed_items,
    list_first,
)
from lvlm_guard.bench.running.store import Record
from lvlm_guard.bench.suite import Suite
from lvlm_guard.errors import InputError

UNHASHED = "the run was begun before pictures were hashed, so a picture that was edited since would not be found"


def find_edits(record: Record, data: Path | None = None) -> list[str]:
    """Compare the items of a run, and the files of their pictures, with what the data folder holds now.

    Args:
        record: The run.
        data: Where the suites' files lie; by default where the run found them.

    Returns:
        A line for each suite and kind of edit, and where nothing can be told; none of suites that need no files.

    Raises:
        InputError: There is no such suite any more, or the run's own digests were edited.
    """
    place = data or record.data
    return [line for name in record.suites for line in _find_in_suite(record, name, place)]


def _find_in_suite(record: Record, name: str, place: Path | None) -> Iterator[str]:
    description = record.manifest["suites"][name]
    suite = build_suite(description["name"], description["arguments"])
    if not suite.required:
        return
    try:
        items = suite.load(place).items
    except InputError as error:
        yield f"{name}: nothing tells whether its items are still those of the run, since its files cannot be read. {error}"
        return
    files = description.get("files_sha256", {})
    if changed := find_changed_files(files, digest_files(suite, place)):
        yield f"{name}: answers are scored by other files than when the run was begun: {list_first(changed)}."
    if changed := find_changed_items(record.items[name], items):
        yield _describe(name, "items", changed, len(record.items[name]))
    added = {item.id for item in items} - {item.id for item in record.items[name]}
    if added and record.manifest["limit"] is None and not description["left_out"]["items"]:
        yield f"{name}: its files hold {len(added)} more items than the run was put to."
    yield from _find_in_pictures(record, name, suite, place, description)


def _find_in_pictures(
    record: Record, name: str, suite: Suite, place: Path | None, description: Mapping[str, Any]
) -> Iterator[str]:
    before = record.read_pictures(name)
    after = digest_pictures(suite, place, record.items[name])
    if "pictures_sha256" not in description and (after or description["pictures"]):
        yield f"{name}: {UNHASHED}."
    elif before and not after:
        yield f"{name}: nothing tells whether its pictures are still those of the run: they are not in {place}."
    elif changed := find_changed_files(before, after):
        yield _describe(name, "pictures", changed, len(before))


def _describe(name: str, kind: str, changed: list[str], total: int) -> str:
    return (
        f"{name}: {len(changed)} of {total} {kind} are not those that the run was put to: {list_first(changed)}. Figures are about "
        "the old ones; begin another run for the new ones."
    )


def describe_other_pictures(before: Record, after: Record, suite: str) -> str | None:
    """Describe how the pictures of two runs differ, or that nothing tells; None where they are the same."""
    descriptions = [run.manifest["suites"][suite] for run in (before, after)]
    if any("pictures_sha256" not in description for description in descriptions):
        return f"{suite}: one of the runs was begun before pictures were hashed, so nothing tells whether they saw the same."
    changed = find_changed_files(before.read_pictures(suite), after.read_pictures(suite))
    if not changed:
        return None
    return f"{suite}: {len(changed)} of {descriptions[0]['pictures']} pictures are not the same in both runs: {list_first(changed)}."
