"""The table of architectures for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from lvlm_guard.cli.tables import show_table
from lvlm_guard.testing.zoo.building import TYPES
from lvlm_guard.testing.zoo.cells import MechanismCell
from lvlm_guard.testing.zoo.rechecking import recheck
from lvlm_guard.testing.zoo.table import Entry, count_statuses, mechanisms_of, status_of

ALL = "all"
NOT_EXACT = "Cells that are not exact"


def probe(types: Sequence[str], console: Console) -> dict[str, Entry]:
    """Probe model types, and name each cell on `console` as it comes.

    Raises:
        InputError: An unknown type.
    """

    def watch(name: str, mechanism: str, cell: MechanismCell) -> None:
        console.print(f"{name}: {mechanism}: {cell.status}", highlight=False)

    return recheck(TYPES if ALL in types else types, watch)


def print_models(table: Mapping[str, Entry], console: Console) -> None:
    """Print a row for each model type, then what is behind every cell that is not exact."""
    mechanisms = mechanisms_of(table)
    rows = [(name, *_row(entry, mechanisms)) for name, entry in table.items() if entry.cells]
    show_table(console, ("model type", *mechanisms), rows, title="Mechanisms by model type")
    show_table(console, ("mechanism", "counts"), _counts(table), title="Model types by status", running=("counts",))
    print_details(table, console)


def print_details(table: Mapping[str, Entry], console: Console) -> None:
    """Print what each cell that is not exact says."""
    rows: list[tuple[str, str, str, str]] = [
        (name, mechanism, cell.status, cell.explanation)
        for name, entry in table.items()
        for mechanism, cell in entry.cells.items()
        if cell.status != "exact"
    ]
    rows += [(name, "", "not built", entry.skipped) for name, entry in table.items() if entry.skipped]
    show_table(console, ("model type", "mechanism", "status", "says"), rows, title=NOT_EXACT, running=("says",))


def _row(entry: Entry, mechanisms: Sequence[str]) -> list[str]:
    return [status_of(entry, mechanism) for mechanism in mechanisms]


def _counts(table: Mapping[str, Entry]) -> list[tuple[str, str]]:
    return [
        (mechanism, ", ".join(f"{number} {status}" for status, number in counts.most_common()))
        for mechanism, counts in count_statuses(table).items()
    ]
