"""Tables at any width: no cell is cut, and no line is wider than the terminal."""

import json
from io import StringIO

import pytest
from command_line import run_command
from rich.console import Console

from lvlm_guard.cli.tables import count_of, show_table

WIDTHS = (40, 80, 200)
PRINTING = {
    "strategies": ("strategies",),
    "plan": ("plan", "--model", "llava-1.5-7b", "--stack", "vcd"),
    "bench list": ("bench", "list"),
    "fitters": ("fit", "--list"),
}


def squeezed(text):
    return "".join(text.split())


def printed(width, *arguments, **settings):
    console = Console(file=StringIO(), width=width)
    show_table(console, *arguments, **settings)
    return console.file.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_cell_is_there_whole(width):
    headings = ("system", "a difference with its interval", "note")
    rows = [("a-long-name-of-a-stack" * 2, "+0.123 [-0.100, +0.200]", "text " * 20), ("[bold]", "", "é≥")]
    text = printed(width, headings, rows, title="results", running=("note",))
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for cell in (cell for row in rows for cell in row[:2]):
        assert squeezed(cell) in squeezed(text)


def test_a_table_is_boxed_then_slim_then_written_as_rows():
    headings, rows = ("a", "b", "c"), [("1" * 8, "2" * 8, "3" * 8)]
    shapes = [
        "│" in text or ("─" in text and "slim") for text in (printed(width, headings, rows) for width in (34, 33, 30))
    ]
    assert shapes == [True, "slim", False]
    assert printed(30, headings, rows).split() == ["a:", "1" * 8, "b:", "2" * 8, "c:", "3" * 8]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", PRINTING)
def test_commands_cut_nothing(command, width):
    text = run_command(*PRINTING[command], columns=width)
    assert "…" not in text
    if command in ("strategies", "plan"):
        assert max(map(len, text.splitlines())) <= width
    if command == "plan":
        assert text.count("H200") == 3


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_its_report_and_a_demo_cut_nothing(tmp_path_factory, width, run_folder):
    text = run_command("bench", "report", run_folder, columns=width)
    assert "…" not in text
    figures = json.loads((run_folder / "results.json").read_text())
    names = {score["measure"] for score in figures["scores"]}
    assert names
    assert "difference [95 %]" in text or "difference [95 %]:" in " ".join(text.split())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run_command("bench", "run", "scenes:count=2", "--stack", "vcd", "--out", folder, "--without", "sampling")
    return folder


@pytest.mark.parametrize(("number", "text"), [(0, "0 strategies"), (1, "1 strategy"), (2, "2 strategies")])
def test_a_number_with_its_noun(number, text):
    assert count_of(number, "strategy", "strategies") == text
    assert count_of(1, "item") == "1 item"
