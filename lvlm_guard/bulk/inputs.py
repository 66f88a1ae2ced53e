"""Which reader a file of units has, by its name."""

from __future__ import annotations

from pathlib import Path

from lvlm_guard.bulk.parquet import RowReader
from lvlm_guard.bulk.units import LineReader
from lvlm_guard.errors import InputError

UnitReader = LineReader | RowReader


def open_units(path: Path) -> UnitReader:
    """Return the reader of a file of units.

    Raises:
        InputError: There is no such file, or it is neither JSONL nor Parquet.
    """
    readers: dict[str, type[UnitReader]] = {".jsonl": LineReader, ".parquet": RowReader}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: the input is a .jsonl file, a line of JSON for each picture and its questions, or a .parquet file "
            "with the same fields as columns."
        )
    return reader(path)
