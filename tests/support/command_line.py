"""The command line as a user runs it: what it prints, and what it says when the library refuses."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from lvlm_guard.cli import app, main


def run_command(*arguments: object, columns: int = 80) -> str:
    """Run a command that succeeds, and return what it prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def run_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: object) -> str:
    """Run a command that the library refuses, and return its message in one line."""
    monkeypatch.setattr(sys, "argv", ["lvlm-guard", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return " ".join(message.split())
