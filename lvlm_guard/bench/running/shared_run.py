"""A run that several processes answer: batches are given out one by one, and kept in the order in which one process keeps them."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lvlm_guard import loading
from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running import store
from lvlm_guard.bench.running.batches import Batch, build_batches
from lvlm_guard.bench.running.manifest import Gathered, RunPlan, describe
from lvlm_guard.bench.running.prompting import PromptBuilder, find_swaps
from lvlm_guard.bench.running.runner import (
    SMALL,
    check_template,
    count_rows,
    has_pictures,
    one_thread_if_small,
    open_shards,
)
from lvlm_guard.bench.running.store import Shard
from lvlm_guard.bench.running.system_answers import AnsweringModel, SystemAnswerer, warm_up
from lvlm_guard.bench.running.system_files import Answer, SystemRefusal
from lvlm_guard.bulk.answerers import choose_device, share_cores
from lvlm_guard.bulk.dispatching import MOST_DEATHS, Dispatch
from lvlm_guard.bulk.pools import WorkerBroken, WorkerDeath, WorkerResult
from lvlm_guard.bulk.processes import ProcessPool
from lvlm_guard.errors import GuardError, InputError, describe_error


@dataclass(frozen=True)
class ModelSource:
    """Loads the model of a run, in each process that answers.

    Args:
        name: As `lvlm_guard.loading.load` takes it.
        device: As above; without one, processes take turns with the GPUs of the machine.
        dtype: As above.
    """

    name: str
    device: str | None = None
    dtype: str = "auto"

    def load(self, worker: int = 0, workers: int = 1) -> tuple[Any, Any]:
        """Return the model and its processor."""
        return loading.load(self.name, choose_device(self.device, worker, workers), self.dtype)


@dataclass(frozen=True)
class BatchUnit:
    """A batch, and the systems that are to answer it."""

    suite: str
    number: int
    systems: tuple[str, ...]

    @property
    def id(self) -> str:
        """Tells it from all others."""
        return f"batch {self.number} of {self.suite}"


@dataclass(frozen=True)
class SystemResult:
    """What one system made of one batch: answers and what they cost, or a refusal."""

    answers: tuple[Answer, ...] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    refusal: SystemRefusal | None = None


@dataclass(frozen=True)
class BatchResults(WorkerResult):
    """What each system made of one batch, by name."""

    by_system: Mapping[str, SystemResult]


def run_shared(
    plan: RunPlan, source: ModelSource, folder: Path, workers: int, gathered: Gathered, *, progress: bool = True
) -> tuple[store.Record, int]:
    """Do a run, or what is left of it, with several processes.

    Args:
        plan: What to do; it travels to the processes as a pickle.
        source: Loads the model.
        folder: Where the run is kept; see `store`.
        workers: How many processes.
        gathered: The items of the plan.
        progress: Whether to show a bar with the time left, where the output is a terminal.

    Returns:
        The run, with the answers that one process would have kept, and how many processes died and were replaced.

    Raises:
        InputError: As for `runner.run`, or the processes cannot begin, or die at the same batch again and again.
    """
    answering = AnsweringSource(plan, source, gathered.items)
    _check_travels(answering)
    batches = {name: build_batches(items, plan.batch) for name, items in gathered.items.items()}
    manifest = _describe(plan, source, gathered)
    with store.open_run(folder, manifest, gathered.items, gathered.pictures) as check:
        shards = open_shards(plan, folder, check, batches)
        rows = count_rows(batches) * len(plan.systems)
        with tqdm(total=rows, unit="answer", smoothing=0.05, disable=None if progress else True) as bar:
            keeping = _Keeping(plan, shards, batches, bar)
            replaced = _answer(answering, workers, keeping)
    return store.read(folder), replaced


def _check_travels(answering: AnsweringSource) -> None:
    try:
        pickle.dumps(answering)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"This run cannot be shared among processes: {describe_error(error)}. Use one worker, or functions and classes that "
            "modules hold by name."
        ) from error


def _describe(plan: RunPlan, source: ModelSource, gathered: Gathered) -> dict[str, Any]:
    """Load the model once to say what it is, and let it go."""
    model, processor = source.load()
    check_template(processor)
    with one_thread_if_small(model):
        manifest = describe(plan, model, source.name, gathered)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return manifest


def _answer(answering: AnsweringSource, workers: int, keeping: _Keeping) -> int:
    """Let processes answer what is left; return how many were replaced."""
    units = list(keeping.list_units())
    if not units:
        return 0
    with closing(ProcessPool[BatchUnit](answering, min(workers, len(units)), answer_batch)) as pool:
        dispatch = Dispatch(pool, keeping.keep, _refuse_deadly)
        dispatch.run(keeping.select(units))
        return dispatch.replaced


def _refuse_deadly(unit: BatchUnit, death: WorkerDeath) -> None:
    raise InputError(
        f"{MOST_DEATHS} workers died at {unit.id}; of the last, {death.cause}. If the memory is too small, use fewer --workers, "
        "or begin another folder with a smaller --batch."
    )


class _Keeping:
    """Keeps what workers answer, in the order of the batches; what comes early waits."""

    def __init__(
        self,
        plan: RunPlan,
        shards: Mapping[tuple[str, str], Shard],
        batches: Mapping[str, Sequence[Batch]],
        bar: Any,
    ) -> None:
        self._plan, self._shards, self._batches, self._bar = plan, shards, batches, bar
        self._refused: set[tuple[str, str]] = set()
        self._waiting: dict[BatchUnit, BatchResults | None] = {}

    def list_units(self) -> Iterator[BatchUnit]:
        """Yield every batch that some system has still to answer."""
        for suite, batches in self._batches.items():
            for batch in batches:
                systems = [
                    system.name
                    for system in self._plan.systems
                    if batch.number >= self._shards[system.name, suite].finished
                ]
                self._bar.update(len(batch.items) * (len(self._plan.systems) - len(systems)))
                if systems:
                    yield BatchUnit(suite, batch.number, tuple(systems))

    def select(self, units: Sequence[BatchUnit]) -> Iterator[BatchUnit]:
        """Yield each unit when a worker can take it, without systems that have refused by then."""
        for unit in units:
            systems = tuple(name for name in unit.systems if (name, unit.suite) not in self._refused)
            self._bar.set_description(unit.suite)
            if systems:
                chosen = BatchUnit(unit.suite, unit.number, systems)
                self._waiting[chosen] = None
                yield chosen

    def keep(self, unit: BatchUnit, result: WorkerResult) -> None:
        """Take what was made of a batch, and write what is next."""
        assert isinstance(result, BatchResults)
        self._waiting[unit] = result
        self._bar.update(len(self._batches[unit.suite][unit.number].items) * len(unit.systems))
        while self._waiting and (results := self._waiting[first := next(iter(self._waiting))]) is not None:
            for system, of_system in results.by_system.items():
                self._write(system, first.suite, of_system)
            del self._waiting[first]

    def _write(self, system: str, suite: str, result: SystemResult) -> None:
        """Write what one system made of a batch; nothing behind a refusal."""
        if (system, suite) in self._refused:
            return
        if result.refusal is not None:
            self._refused.add((system, suite))
            self._shards[system, suite].refuse(result.refusal)
            return
        self._shards[system, suite].append(result.answers, result.cost)


@dataclass(frozen=True)
class AnsweringSource:
    """Makes what answers batches in a process.

    Args:
        plan: What to do.
        model: Loads the model.
        items: Items by suite.
    """

    plan: RunPlan
    model: ModelSource
    items: Mapping[str, Sequence[Item]]

    def build(self, worker: int, workers: int) -> BatchAnswerer:
        """Load the model, and return what answers with it."""
        share_cores(workers)
        model, processor = self.model.load(worker, workers)
        if model.device.type == "cpu" and sum(parameter.numel() for parameter in model.parameters()) < SMALL:
            torch.set_num_threads(1)
        return BatchAnswerer(AnsweringModel(self.plan, model, processor), self.items, workers)


class BatchAnswerer:
    """Answers batches of all suites.

    Args:
        job: The plan and the model.
        items: Items by suite.
        workers: How many processes answer, for the costs, which are measured side by side.
    """

    def __init__(self, job: AnsweringModel, items: Mapping[str, Sequence[Item]], workers: int) -> None:
        self._job, self._workers = job, workers
        self._batches = {name: build_batches(of_suite, job.plan.batch) for name, of_suite in items.items()}
        self._builders: dict[str, PromptBuilder] = {}

    def answer(self, unit: BatchUnit) -> BatchResults:
        """Return what the systems of a unit make of its batch."""
        batches = self._batches[unit.suite]
        batch, is_first = batches[unit.number], unit.suite not in self._builders
        builder = self._find_builder(unit.suite)
        prompts = builder.build(batch)
        if is_first:
            warm_up(self._job.model, self._job.processor, unit.suite, prompts)
        results = {}
        for system in self._job.plan.systems:
            if system.name in unit.systems:
                sink = _Sink(unit.number, self._workers)
                SystemAnswerer(self._job, system, unit.suite, sink, may_skip=has_pictures(batches)).answer(
                    batch, prompts, builder
                )
                results[system.name] = sink.result
        return BatchResults(results)

    def _find_builder(self, suite: str) -> PromptBuilder:
        if suite not in self._builders:
            items = [item for batch in self._batches[suite] for item in batch.items]
            plan = self._job.plan
            self._builders[suite] = PromptBuilder(suite, plan.suites[suite].suite, plan.data, find_swaps(items))
        return self._builders[suite]


class _Sink:
    """Holds what one system makes of one batch."""

    def __init__(self, finished: int, workers: int) -> None:
        self.finished, self._workers = finished, workers
        self.result = SystemResult()

    def append(self, answers: Sequence[Answer], cost: Mapping[str, Any]) -> None:
        """Hold answers."""
        self.result = SystemResult(tuple(answers), {**cost, "workers": self._workers})

    def refuse(self, refusal: SystemRefusal) -> None:
        """Hold a refusal."""
        self.result = SystemResult(refusal=refusal)


def answer_batch(answerer: BatchAnswerer, unit: BatchUnit) -> BatchResults | WorkerBroken:
    """Return what the systems made of a batch, or the error that ends the run."""
    try:
        return answerer.answer(unit)
    except GuardError as error:
        return WorkerBroken(error)
    except Exception as error:  # noqa: BLE001 - models and strategies are foreign; one process would end here as well
        return WorkerBroken(InputError(f"{unit.id}: {describe_error(error)}"))
