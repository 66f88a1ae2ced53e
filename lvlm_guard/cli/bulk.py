"""`lvlm-guard generate-batch`: answers to a file of pictures and questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_guard import loading
from lvlm_guard.cli.options import DEFAULT_STACK, Allow, Device, Dtype, Executor, Model, Stack
from lvlm_guard.cli.tables import count_of

if TYPE_CHECKING:
    from lvlm_guard.bulk.answering import BulkOutcome
    from lvlm_guard.host.stack import Stack as StackOfStrategies

LISTED = 5


def generate_batch(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl file, a line for each picture.")],
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the answers; an unfinished one is gone on with.")],
    stack: Stack = DEFAULT_STACK,
    allow: Allow = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of an answer.")] = 128,
    device: Device = None,
    dtype: Dtype = "auto",
    executor: Executor = "auto",
) -> None:
    """Answer the questions of a file about its pictures: every line once, however often this is interrupted."""
    from lvlm_guard.bulk.ledger import AnswerLedger  # noqa: PLC0415 - slow to import
    from lvlm_guard.bulk.units import UnitReader  # noqa: PLC0415 - as above
    from lvlm_guard.host import stack as stacks  # noqa: PLC0415 - as above

    reader = UnitReader(file)
    lines, digest = reader.measure()
    strategies = stacks.Stack.of(stack, allow=allow or ())
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
    manifest = {"format": 1, "input": digest, "model": model, "dtype": dtype, **strategies.to_dict(), **settings}
    with AnswerLedger(out, manifest) as ledger:
        outcome = _run(reader, lines, ledger, (model, device, dtype), strategies, executor, settings)
    _tell(outcome, out)


def _run(
    reader: Any,
    lines: int,
    ledger: Any,
    source: tuple[str, str | None, str],
    strategies: StackOfStrategies,
    executor: Any,
    settings: dict[str, Any],
) -> BulkOutcome:
    """Load the model and answer, with a bar that says how much time is left."""
    from tqdm import tqdm  # noqa: PLC0415 - only for this

    from lvlm_guard.bulk.answering import answer_units  # noqa: PLC0415 - slow to import
    from lvlm_guard.fitting import check_chat_template  # noqa: PLC0415 - as above
    from lvlm_guard.guard import Guard  # noqa: PLC0415 - as above

    loaded, processor = loading.load(*source)
    check_chat_template(processor)
    guard = Guard(loaded, processor, strategies, executor=executor)
    with tqdm(total=lines, unit="line", smoothing=0.05) as bar:
        return answer_units(guard, reader, ledger, settings, bar.update)


def _tell(outcome: BulkOutcome, out: Path) -> None:
    """Print what was done; exit with 1 where lines were left out."""
    before = f", {outcome.before} before" if outcome.before else ""
    typer.echo(f"{out}: {count_of(outcome.answered, 'unit', 'units')} answered{before}")
    if not outcome.rejected:
        return
    typer.echo(f"{count_of(len(outcome.rejected), 'line', 'lines')} left out, see {out / 'rejected.jsonl'}:", err=True)
    for entry in outcome.rejected[:LISTED]:
        typer.echo(f"  line {entry.line}: {entry.reason}", err=True)
    raise typer.Exit(1)
