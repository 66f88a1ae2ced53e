"""`lvlm-guard generate-batch`: answers to a file of pictures and questions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lvlm_guard.cli.engine_options import Engine, EngineName, EngineOptions, check_engine, read_engine_options
from lvlm_guard.cli.options import DEFAULT_STACK, Allow, Device, DeviceMap, Dtype, Executor, Model, Quantization, Stack
from lvlm_guard.cli.tables import count_of
from lvlm_guard.errors import InputError
from lvlm_guard.extras import import_extra
from lvlm_guard.loading import Placement

if TYPE_CHECKING:
    from lvlm_guard.bulk.answerers import GuardSource
    from lvlm_guard.bulk.answering import BulkOutcome
    from lvlm_guard.bulk.inputs import UnitReader
    from lvlm_guard.bulk.ledger import AnswerLedger
    from lvlm_guard.bulk.pools import WorkerPool
    from lvlm_guard.bulk.units import BulkUnit
    from lvlm_guard.host.stack import Stack as StackOfStrategies

LISTED = 5
FormatName = Literal["jsonl", "parquet"]


def generate_batch(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .jsonl or .parquet file, a line or row for each picture.")
    ],
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the answers; an unfinished one is gone on with.")],
    stack: Stack = DEFAULT_STACK,
    allow: Allow = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of an answer.")] = 128,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with the model.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Workers are actors of Ray: local, auto, or the address of a cluster."),
    ] = None,
    write: Annotated[
        FormatName | None,
        typer.Option(metavar="FORMAT", help="jsonl, or parquet beside it.", show_default="as FILE"),
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quantize: Quantization = None,
    tp: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes of torchrun that share out the model's matrices.")
    ] = 1,
    executor: Executor = "auto",
    engine: Engine = "transformers",
    engine_options: EngineOptions = None,
) -> None:
    """Answer the questions of a file about its pictures: every line once, however often this is interrupted."""
    from lvlm_guard.bulk import inputs, parquet  # noqa: PLC0415 - slow to import
    from lvlm_guard.bulk.answerers import GuardSource  # noqa: PLC0415 - as above
    from lvlm_guard.bulk.ledger import ANSWERS, AnswerLedger  # noqa: PLC0415 - as above
    from lvlm_guard.engines.bulk_source import VllmSource  # noqa: PLC0415 - as above
    from lvlm_guard.host import stack as stacks  # noqa: PLC0415 - as above

    placement = Placement(device_map, quantize, tp)
    check_engine(engine, engine_options, is_placed=device is not None or not placement.is_plain)
    _check_workers(workers, ray, placement, engine)
    reader = inputs.open_units(file)
    if writes_parquet := write == "parquet" or (write is None and isinstance(reader, parquet.RowReader)):
        import_extra(*parquet.PYARROW)
    _check_places(file, out)
    lines, digest = reader.measure()
    strategies = stacks.Stack.of(stack, allow=allow or ())
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
    functions, described = tuple(allow or ()), strategies.to_dict()
    source = GuardSource(model, device, dtype, placement, stack, functions, described, executor, settings)
    if tp > 1 and _follow(source, strategies):
        return
    in_vllm = VllmSource(model, dtype, strategies, settings, read_engine_options(engine_options))
    manifest, open_pool = (
        (in_vllm.describe(), in_vllm.open_pool)
        if engine == "vllm"
        else (source.describe(), lambda: _open_pool(source, workers, ray))
    )
    with AnswerLedger(out, {"format": 1, "input": digest, **manifest}) as ledger:
        outcome = _run(reader, lines, ledger, open_pool)
        if reader.measure() != (lines, digest):
            raise InputError(
                f"{file} has changed while it was answered, so some answers may be about what it held before. Begin again in another "
                "folder."
            )
        if writes_parquet:
            parquet.write_answers(out / ANSWERS, out / "answers.parquet")
    _tell(outcome, out)


def _check_places(file: Path, out: Path) -> None:
    """Refuse an input that this job would write over."""
    from lvlm_guard.bulk.ledger import ANSWERS, LOCK, MANIFEST, REJECTED  # noqa: PLC0415 - slow to import

    names = (ANSWERS, REJECTED, MANIFEST, LOCK, "answers.parquet")
    if any((out / name).resolve() == file.resolve() for name in names):
        raise InputError(
            f"{file} is the input, and would be written over as a file of --out {out}. Name another folder."
        )


def _check_workers(workers: int, ray: str | None, placement: Placement, engine: EngineName) -> None:
    """Refuse what cannot work before anything is read."""
    if engine == "vllm" and (workers > 1 or ray is not None):
        raise InputError(
            "vLLM answers many lines at once in one process: leave --workers and --ray out with --engine vllm."
        )
    if placement.processes > 1 and (workers > 1 or ray is not None):
        raise InputError("--tp shares one model among processes, so it goes with neither --workers nor --ray.")
    if ray is not None:
        import_extra("ray", "ray")
    elif workers > 1 and not placement.is_plain:
        raise InputError("A model that is spread or quantised uses all devices. Use one worker, or --ray local.")


def _follow(source: GuardSource, strategies: StackOfStrategies) -> bool:
    """Answer beside the first of the processes that share a model; return whether this is another than the first."""
    from lvlm_guard.bulk import tensor_parallel  # noqa: PLC0415 - slow to import

    tensor_parallel.check_stack(strategies)
    rank = tensor_parallel.read_rank(source.placement.processes)
    if rank:
        tensor_parallel.follow(source.build(0, 1))
    return bool(rank)


def _run(
    reader: UnitReader, lines: int, ledger: AnswerLedger, open_pool: Callable[[], WorkerPool[BulkUnit]]
) -> BulkOutcome:
    """Answer, with a bar that says how much time is left."""
    from tqdm import tqdm  # noqa: PLC0415 - only for this

    from lvlm_guard.bulk.answering import answer_units  # noqa: PLC0415 - slow to import

    with (
        closing(open_pool()) as pool,
        tqdm(total=lines, initial=len(ledger.finished), unit="line", smoothing=0.05) as bar,
    ):
        return answer_units(pool, reader, ledger, bar.update)


def _open_pool(source: GuardSource, workers: int, ray: str | None) -> WorkerPool[BulkUnit]:
    from lvlm_guard.bulk.pools import OwnProcess  # noqa: PLC0415 - slow to import
    from lvlm_guard.bulk.processes import ProcessPool  # noqa: PLC0415 - as above
    from lvlm_guard.bulk.ray_actors import RayPool  # noqa: PLC0415 - as above
    from lvlm_guard.bulk.tensor_parallel import LeadingProcess  # noqa: PLC0415 - as above

    if source.placement.processes > 1:
        return LeadingProcess(source.build(0, 1))
    if ray is not None:
        return RayPool(source, workers, ray, None if source.device is None else float(source.device != "cpu"))
    return OwnProcess(source.build(0, 1)) if workers == 1 else ProcessPool(source, workers)


def _tell(outcome: BulkOutcome, out: Path) -> None:
    """Print what was done; exit with 1 where lines were left out."""
    before = f", {outcome.before} before" if outcome.before else ""
    typer.echo(f"{out}: {count_of(outcome.answered, 'unit', 'units')} answered{before}")
    if outcome.replaced:
        typer.echo(f"{count_of(outcome.replaced, 'worker', 'workers')} died and were replaced", err=True)
    if not outcome.rejected:
        return
    typer.echo(f"{count_of(len(outcome.rejected), 'line', 'lines')} left out, see {out / 'rejected.jsonl'}:", err=True)
    for entry in outcome.rejected[:LISTED]:
        typer.echo(f"  line {entry.line}: {entry.reason}", err=True)
    raise typer.Exit(1)
