"""The command-line page names every command and every option, and no others."""

import re
from pathlib import Path

import pytest
import typer

from lvlm_guard.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## lvlm-guard ([\w -]+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


def commands(command, name=""):
    """(full name, command) of every leaf that help shows."""
    shown = {word: inner for word, inner in getattr(command, "commands", {}).items() if not inner.hidden}
    for word, inner in shown.items():
        full = f"{name} {word}".strip()
        yield from commands(inner, full) if hasattr(inner, "commands") else [(full, inner)]


PROGRAM = typer.main.get_command(app)
COMMANDS = dict(commands(PROGRAM))


def test_every_command_has_a_section():
    assert sorted(SECTIONS) == sorted(COMMANDS)


def test_the_page_names_the_options_of_the_program():
    options = {option for parameter in PROGRAM.params for option in parameter.opts}
    assert options >= {"--version", "--install-completion"}
    assert [option for option in options if option not in PAGE.partition("\n## ")[0]] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_lists_exactly_the_options(name):
    options = {
        option for parameter in COMMANDS[name].params for option in parameter.opts if option.startswith("--")
    } - {"--help"}
    assert set(re.findall(r"^\| `(--[\w-]+)`", SECTIONS[name], flags=re.MULTILINE)) == options
