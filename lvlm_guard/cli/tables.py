"""Tables for a terminal of any width: no cell is ever cut."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = str | Text
COMFORT = 20
"""Columns of text narrower than this are hard to read, so the rows are written one below the other instead."""
BOXED, SLIM = 3, 2
"""What a column takes beside its text: a space on either side and a line, or two spaces."""


def show_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    title: str = "",
    running: Collection[str] = (),
    figures: Collection[str] = (),
    last: Collection[int] = (),
) -> None:
    """Print a table where it fits the width of the console; else each row as a block of lines `heading: cell`.

    Args:
        console: Where to.
        headings: One for each column.
        rows: Cells by row; a string is printed as it is, without markup.
        title: Stands above the table.
        running: Headings of columns with running text, whose lines may be broken between words; no others are.
        figures: Headings of columns that are set to the right.
        last: Indices of rows that end a section.
    """
    room = console.width - _least_width(headings, rows, running) - 1
    if room < SLIM * len(headings):
        _show_blocks(console, headings, rows, title)
        return
    table = Table(title=Text(title, "table.title") if title else None)
    if room < BOXED * len(headings):
        table.box, table.pad_edge, table.padding = box.SIMPLE_HEAD, False, (0, 1, 0, 0)
    for heading in headings:
        justify: Literal["left", "right"] = "right" if heading in figures else "left"
        table.add_column(Text(heading), justify=justify, no_wrap=heading not in running, overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(*map(_as_text, row), end_section=number in last)
    console.print(table)


def _show_blocks(console: Console, headings: Sequence[str], rows: Sequence[Sequence[Cell]], title: str) -> None:
    """Print each row as a block, its first cell in bold; empty cells are left out."""
    if title:
        console.print(Text(title, "bold"))
    for row in rows:
        console.print()
        for number, (heading, cell) in enumerate(zip(headings, row, strict=True)):
            if text := _as_text(cell):
                line = Text(f"{heading}: " if heading else "").append_text(text)
                console.print(Text("  " if number else "").append_text(line))
    console.print()


def _least_width(headings: Sequence[str], rows: Sequence[Sequence[Cell]], running: Collection[str]) -> int:
    """Return the least width of all columns' texts where only running text is broken."""
    columns = [[_as_text(cell).plain for cell in column] for column in zip(headings, *rows, strict=True)]
    widths = (
        _least_running(cells) if heading in running else max(map(_longest_line, cells))
        for heading, cells in zip(headings, columns, strict=True)
    )
    return sum(widths)


def _least_running(cells: Sequence[str]) -> int:
    words = max((cell_len(word) for cell in cells for word in cell.split()), default=0)
    return max(words, min(COMFORT, max(map(_longest_line, cells))))


def _longest_line(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def _as_text(cell: Cell) -> Text:
    return Text(cell) if isinstance(cell, str) else cell


def count_of(number: int, singular: str, plural: str | None = None) -> str:
    """Write a number with its noun: "1 strategy", "2 strategies"; the plural is the singular with an s unless it is named."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
