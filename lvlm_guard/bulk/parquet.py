"""Parquet in and out: a row for each picture and its questions, and a row for each answered unit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lvlm_guard.bulk.units import FIELDS, BulkUnit, RejectedLine, UnitParser
from lvlm_guard.errors import InputError, quote
from lvlm_guard.extras import import_extra
from lvlm_guard.files import is_file, write_whole

PYARROW = "pyarrow.parquet", "parquet"
"""The package, its Parquet part loaded, and its extra."""
ROWS = 256
CHUNK = 2**20


class RowReader:
    """Reads a Parquet file of units with columns as the fields of a line.

    `image` holds paths, which start at the file's folder, the content of picture files, or both as Hugging Face datasets
    keep them, `{bytes, path}`. An id that is missing is the number of the row.

    Args:
        path: The file.

    Raises:
        InputError: There is no such file, it is no Parquet file, it has another column, or pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        if not is_file(path):
            raise InputError(f"{path}: there is no such file.")
        self._path = path
        with self._open() as file:
            self._rows: int = file.metadata.num_rows
            names = file.schema_arrow.names
        unknown = [name for name in names if name not in FIELDS]
        if len(set(names)) < len(names):
            raise InputError(f"{path}: two columns have one name. Rename one of them.")
        if unknown:
            raise InputError(
                f"{path}: the column {quote(unknown[0])} is not known; those that are: {', '.join(FIELDS)}."
            )

    def measure(self) -> tuple[int, str]:
        """Return how many rows the input has, and the digest of all of it."""
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return self._rows, digest.hexdigest()

    def __iter__(self) -> Iterator[BulkUnit | RejectedLine]:
        """Yield every row: as a unit, or as what is wrong with it."""
        parser = UnitParser(self._path.parent)
        number = 0
        with self._open() as file:
            for group in range(file.num_row_groups):
                end = number + file.metadata.row_group(group).num_rows
                for values in self._read_group(file, group):
                    number += 1
                    yield values if isinstance(values, RejectedLine) else parser.parse(number, _drop_nulls(values))
                yield from _reject_rows(number, end, group)
                number = end

    def _read_group(self, file: Any, group: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a group; none where the rest of it is damaged."""
        pyarrow = import_extra(*PYARROW)
        try:
            for batch in file.iter_batches(ROWS, row_groups=[group]):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError):
            return

    def _open(self) -> Any:
        pyarrow = import_extra(*PYARROW)
        try:
            return pyarrow.parquet.ParquetFile(self._path)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{self._path} cannot be read as Parquet: {quote(str(error))}. Write it anew.") from None


def _reject_rows(number: int, end: int, group: int) -> Iterator[RejectedLine]:
    for missing in range(number + 1, end + 1):
        yield RejectedLine(missing, f"row group {group} of the file is damaged from here on")


def _drop_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row that hold something; a picture in two parts is its content, or else its path."""
    values = {name: value for name, value in row.items() if value is not None}
    image = values.get("image")
    if isinstance(image, dict):
        values["image"] = image.get("bytes") or image.get("path")
    return values


def write_answers(answers: Path, path: Path) -> None:
    """Write what a file of answers holds as Parquet: columns `id`, `line`, and `answers`, a list of `{question, answer}`.

    Args:
        answers: The file, a line for each unit.
        path: Is replaced at once.

    Raises:
        InputError: It cannot be written, or pyarrow is not installed.
    """

    def write_rows(handle: int, _: bytes | memoryview) -> None:
        with os.fdopen(os.dup(handle), "wb") as target, answers.open("rb") as source:
            _write_rows(source, target)
            os.fsync(handle)

    write_whole(path, b"", write_rows)


def _write_rows(source: Any, target: Any) -> None:
    pyarrow = import_extra(*PYARROW)
    pair = pyarrow.struct([("question", pyarrow.string()), ("answer", pyarrow.string())])
    schema = pyarrow.schema([("id", pyarrow.string()), ("line", pyarrow.int64()), ("answers", pyarrow.list_(pair))])
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        while rows := _load_rows(list(islice(source, ROWS))):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _load_rows(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]
