"""The folder of a run: its settings and every raw answer, so that it can be resumed and scored again.

`manifest.json` says what the run is, `items.jsonl` holds the prompts and their truth, `answers/<system>/<suite>.jsonl` the raw
answers, `costs/` what each batch took, `refusals/` why a system could not answer. Answers and costs only grow, a batch at a
time; the rest is written whole. Everything but what measures compute carries check values; see `sealing`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.bench import files
from lvlm_guard.bench.items import AnsweredItem, Item
from lvlm_guard.bench.running.batches import Batch, build_batches
from lvlm_guard.bench.running.edits import (
    PICTURES,
    Digests,
    find_changed_files,
    find_changed_items,
    format_pictures,
    list_first,
    read_pictures,
)
from lvlm_guard.bench.running.kept_items import ITEMS, format_items, read_items
from lvlm_guard.bench.running.kept_items import digest as digest  # noqa: PLC0414 - part of this module's names
from lvlm_guard.bench.running.sealing import CHECK, seal
from lvlm_guard.bench.running.stored_manifest import ADDED, PLACE, read_manifest
from lvlm_guard.bench.running.stored_manifest import FORMAT as FORMAT  # noqa: PLC0414 - as above
from lvlm_guard.bench.running.system_files import SKIPPED, Answer, SystemFiles, SystemRefusal
from lvlm_guard.deprecation import moved_names, warn_renamed
from lvlm_guard.errors import GuardWarning, InputError
from lvlm_guard.files import check_name, exists, is_file, is_folder

MANIFEST = "manifest.json"
LOCK = "lock"
UNCOMPARED = ("data", "hardware.threads", "format", CHECK)
"""What may differ between the parts of a run: where the data lie, how many threads work, and how the run is written down."""

SHOWN = 3
"""How many differences an error names."""


class Shard:
    """The answers of one system to one suite. Whole batches are kept; the rest is dropped and answered again.

    Args:
        system_files: The files of the system and suite.
        batches: All batches of the suite.

    Raises:
        InputError: What is there is not what this run wrote, or cannot be changed.
    """

    def __init__(self, system_files: SystemFiles, batches: Sequence[Batch]) -> None:
        self._files = system_files
        self._answered = 0
        self.finished = self._recover(batches)
        """Batches that need not be done again."""
        for ledger in (system_files.answers, system_files.costs):
            files.make_folder(ledger.path.parent)
        files.remove(system_files.refusal)

    def _recover(self, batches: Sequence[Batch]) -> int:
        answers, costs = self._files.answers.lines(), self._files.costs.lines()
        self._files.parse_answers(answers, [item.id for batch in batches for item in batch.items])
        self._files.parse_costs(costs)
        finished = 0
        for batch, _ in zip(batches, costs, strict=False):
            if self._answered + len(batch.items) > len(answers):
                break
            self._answered += len(batch.items)
            finished += 1
        files.cut(self._files.answers.path, sum(map(len, answers[: self._answered])))
        files.cut(self._files.costs.path, sum(map(len, costs[:finished])))
        return finished

    def append(self, answers: Sequence[Answer], cost: Mapping[str, Any]) -> None:
        """Keep the answers to the next batch; they count once the last of them is on the disk."""
        ledger = self._files.answers
        lines = [ledger.line(answer.to_dict(), number) for number, answer in enumerate(answers, self._answered + 1)]
        files.append(self._files.costs.path, self._files.costs.line(cost, self.finished + 1))
        files.append(ledger.path, b"".join(lines))
        self.finished += 1
        self._answered += len(answers)

    def refuse(self, refusal: SystemRefusal) -> None:
        """Keep why there are no more answers."""
        self._files.write_refusal(refusal)


def check_folder(folder: Path) -> None:
    """Check that a run can be kept in a folder, before anything slow is done; nothing is written.

    Raises:
        InputError: It is a file, holds something else, or cannot be written to.
    """
    check_name(folder)
    existing = next(place for place in (folder, *folder.absolute().parents) if exists(place))
    if not is_folder(existing):
        place = "a folder" if existing == folder else "in a folder"
        raise InputError(f"--out must be {place}, but {existing} is a file. Name another one.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"The folder {existing} cannot be written to. Name another one by --out.")
    if existing == folder and not exists(folder / MANIFEST):
        _refuse_strangers(folder)


@contextmanager
def open_run(
    folder: Path,
    manifest: Mapping[str, Any],
    items: Mapping[str, Sequence[Item]],
    pictures: Mapping[str, Digests] | None = None,
) -> Iterator[str | None]:
    """Start a run in a folder, or resume the one there; no other process may use it until the block ends.

    Args:
        folder: The folder.
        manifest: What the run is.
        items: Its items by suite.
        pictures: Digests of their pictures by suite.

    Yields:
        The check value of the run's manifest; None where it has none.

    Raises:
        InputError: The folder holds something else, a run with other settings, of other items or an edited one, or is in use.
    """
    check_folder(folder)
    files.make_folder(folder)
    with files.hold_lock(folder / LOCK):
        for draft in folder.rglob(f".*{files.DRAFT}"):
            files.remove(draft)
        written = seal(json.loads(json.dumps(manifest, default=str)), PLACE)
        if exists(folder / MANIFEST):
            existing = read_manifest(folder / MANIFEST)
            _refuse_edited(folder, existing, written, items, pictures or {})
            _refuse_another(folder, existing, written)
            if not exists(folder / ITEMS):
                files.write_whole(folder / ITEMS, format_items(folder, existing.get(CHECK), items))
            read_items(folder, existing.get(CHECK), existing["suites"])
        else:
            existing = written
            files.write_whole(folder / ITEMS, format_items(folder, existing[CHECK], items))
            if rows := format_pictures(folder, existing[CHECK], pictures or {}):
                files.write_whole(folder / PICTURES, rows)
            files.write_whole(
                folder / MANIFEST, (json.dumps(existing, ensure_ascii=False, indent=2) + "\n").encode("utf-8")
            )
        yield existing.get(CHECK)


def _refuse_strangers(folder: Path) -> None:
    strangers = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in (LOCK, ITEMS, PICTURES) and not entry.name.endswith(files.DRAFT)
    )
    if strangers:
        raise InputError(f"{folder} holds {strangers[0]} but no {MANIFEST}, so it is no run. Name an empty folder.")


def _refuse_edited(
    folder: Path,
    existing: Mapping[str, Any],
    manifest: Mapping[str, Any],
    items: Mapping[str, Sequence[Item]],
    pictures: Mapping[str, Digests],
) -> None:
    """Refuse to go on where a suite was asked for in the same words and holds other items or pictures now."""
    if any(existing[name] != manifest[name] for name in ("limit", "missing_pictures")) or not exists(folder / ITEMS):
        return
    shared = [name for name in manifest["suites"] if _is_same_choice(existing, manifest, name)]
    old_items = read_items(folder, existing.get(CHECK), existing["suites"])
    old_pictures = read_pictures(folder, existing.get(CHECK), existing["suites"])
    for name in shared:
        changed = {
            "items": (find_changed_items(old_items[name], items[name]), len(old_items[name])),
            "pictures": (find_changed_files(old_pictures[name], pictures.get(name, {})), len(old_pictures[name])),
        }
        for kind, (names, total) in changed.items():
            if names:
                raise InputError(
                    f"{folder}: {len(names)} of {total} {kind} of {name} are not those that the run was begun with: "
                    f"{list_first(names)}. Its answers are about the old ones. Restore the files, or begin another run in "
                    "another folder."
                )


def _is_same_choice(existing: Mapping[str, Any], manifest: Mapping[str, Any], name: str) -> bool:
    old, new = existing["suites"].get(name), manifest["suites"][name]
    return old is not None and all(old[key] == new[key] for key in ("name", "arguments", "left_out"))


def _refuse_another(folder: Path, existing: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    suites = {
        name: {
            key: value for key, value in suite.items() if key not in ADDED or key in existing["suites"].get(name, suite)
        }
        for name, suite in manifest["suites"].items()
    }
    every = _differences(existing, {**manifest, "suites": suites})
    differences = [difference for difference in every if difference[0] not in UNCOMPARED]
    if differences:
        examples = "; ".join(f"{path}: {there} there, {here} here" for path, there, here in differences[:SHOWN])
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise InputError(
            f"{folder} holds a run with other settings: {examples}{more}. Repeat its settings, or name another folder."
        )


def _differences(there: Any, here: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (path, value there, value here) wherever two JSON values differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys((*there, *here)):
            inner = f"{path}.{name}" if path else name
            if name not in there or name not in here:
                yield inner, _short(there.get(name, "nothing")), _short(here.get(name, "nothing"))
            else:
                yield from _differences(there[name], here[name], inner)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (left, right) in enumerate(zip(there, here, strict=True)):
            yield from _differences(left, right, f"{path}[{index}]")
    elif there != here:
        yield path, _short(there), _short(here)


def _short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


@dataclass(frozen=True)
class SkippedItems:
    """Items without a picture that a system skipped, since it needs one.

    Args:
        ids: Their ids.
        reason: What the system said about the first of them; empty where there are none.
    """

    ids: Sequence[str]
    reason: str


@dataclass(frozen=True)
class Record:
    """The content of the folder of a run, finished or not.

    Args:
        folder: The folder.
        manifest: What the run is.
        items: Items by suite, in their order.
    """

    folder: Path
    manifest: Mapping[str, Any]
    items: Mapping[str, Sequence[Item]]

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the systems, in the order of the run."""
        return tuple(self.manifest["systems"])

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of the suites, in the order of the run."""
        return tuple(self.manifest["suites"])

    @property
    def data(self) -> Path | None:
        """Where the run found the suites' files."""
        return Path(self.manifest["data"]) if self.manifest["data"] else None

    def read_answers(self, system: str, suite: str) -> list[AnsweredItem]:
        """Return the answers of a system so far, in the order of the items; items that it skipped have none.

        Raises:
            InputError: A line is damaged, or is not what the run wrote there; names the file and the line.
        """
        by_id = {answer.id: answer for answer in self._read(system, suite) if not answer.skipped}
        return [
            AnsweredItem(item, by_id[item.id].text, by_id[item.id].tokens, by_id[item.id].margin)
            for item in self.items[suite]
            if item.id in by_id
        ]

    def read_skipped(self, system: str, suite: str) -> SkippedItems:
        """Return what a system skipped: items without a picture, where it needs one.

        Raises:
            InputError: As for `read_answers`.
        """
        ids = tuple(answer.id for answer in self._read(system, suite) if answer.skipped)
        files_of_system = self._files(system, suite)
        costs = files_of_system.parse_costs(files_of_system.costs.lines()) if ids else []
        return SkippedItems(ids, next((cost[SKIPPED] for cost in costs if SKIPPED in cost), ""))

    def _read(self, system: str, suite: str) -> list[Answer]:
        batches = build_batches(self.items[suite], self.manifest["batch"])
        system_files = self._files(system, suite)
        ids = [item.id for batch in batches for item in batch.items]
        return system_files.parse_answers(system_files.answers.lines(), ids)

    def read_pictures(self, suite: str) -> Digests:
        """Return the digests of the pictures' files, by name; none in runs that were begun before there were any.

        Raises:
            InputError: They are not those that the run was begun with; names the file, and the line where one is at fault.
        """
        return read_pictures(self.folder, self.manifest.get(CHECK), self.manifest["suites"])[suite]

    def said(self, system: str, suite: str) -> list[AnsweredItem]:
        """Return what `read_answers` returns; deprecated."""
        warn_renamed("Record.said", "Record.read_answers", stacklevel=3)
        return self.read_answers(system, suite)

    def costs(self, system: str, suite: str) -> list[dict[str, Any]]:
        """Return what each batch cost, in the order of the batches; those that were skipped are left out.

        Raises:
            InputError: As for `read_answers`.
        """
        system_files = self._files(system, suite)
        return [cost for cost in system_files.parse_costs(system_files.costs.lines()) if SKIPPED not in cost]

    def refusal(self, system: str, suite: str) -> SystemRefusal | None:
        """Return why a system could not answer a suite; None where it could.

        Raises:
            InputError: The file of the refusal is not what the run wrote.
        """
        return self._files(system, suite).read_refusal()

    def _files(self, system: str, suite: str) -> SystemFiles:
        return SystemFiles(self.folder, self.manifest.get(CHECK), system, suite)


def read(folder: Path) -> Record:
    """Read the folder of a run. One that was begun before runs had check values is read with a warning.

    Raises:
        InputError: It is none, or a file of it cannot be read or was edited.
    """
    if not is_file(folder / MANIFEST):
        raise InputError(
            f"{folder} holds no {MANIFEST}, so it is no run. Begin one: lvlm-guard bench run ... --out DIR."
        )
    manifest = read_manifest(folder / MANIFEST)
    if CHECK not in manifest:
        warnings.warn(
            f"{folder} holds a run of an older version, whose answers have no check values: an edited one would not be found.",
            GuardWarning,
            stacklevel=2,
        )
    return Record(folder, manifest, read_items(folder, manifest.get(CHECK), manifest["suites"]))


__getattr__ = moved_names(__name__, {"opened": "lvlm_guard.bench.running.store:open_run"})
