"""Tables of `lvlm-guard verify` for a terminal, and its progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from lvlm_guard.cli.tables import Cell, show_table
from lvlm_guard.verification.checks import MEANINGS, Check, Status
from lvlm_guard.verification.results import Verification
from lvlm_guard.verification.verifying import Watch

STYLES: dict[Status, str] = {"pass": "green", "refused": "yellow", "failed": "bold red", "unproven": "dim"}
LIMITED = ("cache", "executors", "recompute", "rows")
SHORT = {"prefill cost": "prefill x", "decode cost": "decode x"}


@contextmanager
def progress() -> Iterator[Watch]:
    """Show a bar on stderr while checks come; yields what to call with each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("plain generate", total=None)
        checks: list[Check] = []

        def watch(check: Check, left: int) -> None:
            checks.append(check)
            bar.update(task, description=check.title, completed=len(checks), total=len(checks) + left)

        yield watch


def show(verification: Verification, console: Console) -> None:
    """Print the checks of the model and of each stack, then what is behind every check that did not pass."""
    model_checks = [check for check in verification.checks if not check.stack]
    rows = [(check.check, _cell(check), MEANINGS[check.check]) for check in model_checks]
    model = verification.model
    title = f"{model.architecture} ({model.type}), {model.dtype} on {model.device}"
    show_table(console, ("check", "result", "means"), rows, title=title, running=("means",))
    _show_stacks(verification, console)
    console.print(_explain_limits(verification), soft_wrap=True)
    details = [
        (check.title, Text(check.status, STYLES[check.status]), check.says)
        for check in verification.checks
        if check.status != "pass"
    ]
    if details:
        show_table(console, ("check", "status", "says"), details, title="What did not pass", running=("says",))


def _explain_limits(verification: Verification) -> str:
    """Say what a figure may be; limits of contrasts grow with the rounding that the model itself shows."""
    limits = [check.tolerance for check in verification.checks if check.check in LIMITED and check.tolerance]
    most = f"{max(limits):.2g}" if limits else "none"
    return f"A figure alone is a pass. In {verification.model.dtype} differences may be up to {most}, and 0 is bit for bit.\n"


def _show_stacks(verification: Verification, console: Console) -> None:
    """Print a row for each stack with a column for each check; figures are differences of logits in standard deviations."""
    results = {(check.stack, check.check): check for check in verification.checks if check.stack}
    stacks = list(dict.fromkeys(stack for stack, _ in results))
    names = [name for name in MEANINGS if any((stack, name) in results for stack in stacks)]
    rows = [(stack, *(_cell(results.get((stack, name))) for name in names)) for stack in stacks]
    title = "Stacks: differences of logits in standard deviations, and times over plain generate's"
    show_table(console, ("stack", *(SHORT.get(name, name) for name in names)), rows, title=title)


def _cell(check: Check | None) -> Cell:
    if check is None:
        return ""
    figure = "" if check.figure is None else f"{check.figure:.2g}"
    text = figure if check.status == "pass" else f"{check.status} {figure}".strip()
    return Text(text, STYLES[check.status])
