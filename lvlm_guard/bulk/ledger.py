"""The output: a line for each answered unit, which is there whole or not at all, and in the order of the input at the end."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from typing_extensions import Self

from lvlm_guard.errors import InputError, quote
from lvlm_guard.files import is_file, put, unwritable, write_whole

ANSWERS, MANIFEST, REJECTED, LOCK = "answers.jsonl", "manifest.json", "rejected.jsonl", "lock"


class AnswerLedger:
    """The folder of one job; one process writes it at a time.

    Args:
        folder: Made where it is missing.
        manifest: What decides the answers; a folder of another job is refused.

    Raises:
        InputError: The folder holds another job, cannot be written, or another process writes it.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise unwritable(folder, error) from None
        try:
            self._take_lock()
            self._check_manifest(manifest)
            self._last_line, self._is_sorted = 0, True
            self.finished = self._recover()
            """Ids of units that are answered."""
            self._answers = self._open_answers()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        """Return the ledger, which is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let other processes write."""
        os.close(self._answers)
        os.close(self._lock)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write the answers of one unit, and return once the disk has them."""
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            put(self._answers, line)
        except OSError as error:
            raise unwritable(self._folder / ANSWERS, error) from None
        self.finished.add(entry["id"])
        self._note_line(entry["line"])

    def sort(self) -> None:
        """Put the answers into the order of the input, where workers finished in another.

        Raises:
            InputError: The file cannot be written; it is as it was.
        """
        if self._is_sorted:
            return
        path = self._folder / ANSWERS
        with path.open("rb") as file:
            spans = sorted(_list_spans(path, file))
            write_whole(path, b"", lambda handle, _: _copy_spans(file, spans, handle))
        os.close(self._answers)
        self._answers = self._open_answers()
        self._is_sorted = True

    def write_rejected(self, entries: list[dict[str, Any]]) -> None:
        """Write which lines were left out, and why, in place of what an earlier run wrote."""
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        write_whole(self._folder / REJECTED, lines.encode())

    def _open_answers(self) -> int:
        return os.open(self._folder / ANSWERS, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

    def _note_line(self, line: int) -> None:
        self._is_sorted = self._is_sorted and line > self._last_line
        self._last_line = line

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self._folder}: another process writes here. Wait for it, or name another folder."
            ) from None

    def _check_manifest(self, manifest: Mapping[str, Any]) -> None:
        path = self._folder / MANIFEST
        if not is_file(path):
            if is_file(self._folder / ANSWERS):
                raise InputError(f"{self._folder} holds {ANSWERS} without {MANIFEST}. Name another folder.")
            write_whole(path, (json.dumps(manifest, indent=2) + "\n").encode())
            return
        try:
            before = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path} cannot be read: {error}. Name another folder.") from None
        changed = [name for name in {**before, **manifest} if before.get(name) != manifest.get(name)]
        if changed:
            raise InputError(
                f"{self._folder} was begun with {changed[0]} {quote(before.get(changed[0]))}, now it is "
                f"{quote(manifest.get(changed[0]))}. Go on with the same, or name another folder."
            )

    def _recover(self) -> set[str]:
        """Return the ids of answered units; the beginning of a line that was never finished is cut off."""
        path = self._folder / ANSWERS
        if not is_file(path):
            return set()
        ids: set[str] = set()
        size = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    unit, place = _read_entry(path, number, line)
                    ids.add(unit)
                    self._note_line(place)
                    size += len(line)
        os.truncate(path, size)
        return ids


def _read_entry(path: Path, number: int, line: bytes) -> tuple[str, int]:
    """Return the id of an answered unit, and its line in the input."""
    try:
        entry = json.loads(line)
        return str(entry["id"]), int(entry["line"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}, line {number}: this is no answer that was written here. Name another folder."
        ) from None


def _list_spans(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Yield the line in the input, the offset and the length of every answered unit."""
    offset = 0
    for number, line in enumerate(file, 1):
        yield _read_entry(path, number, line)[1], offset, len(line)
        offset += len(line)


def _copy_spans(file: BinaryIO, spans: Sequence[tuple[int, int, int]], handle: int) -> None:
    with os.fdopen(os.dup(handle), "wb") as target:
        for _, offset, length in spans:
            file.seek(offset)
            target.write(file.read(length))
    os.fsync(handle)
