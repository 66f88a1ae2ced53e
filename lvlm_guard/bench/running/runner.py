"""Put every item of some suites to every system, and store each raw answer as soon as it exists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lvlm_guard.bench.running import store
from lvlm_guard.bench.running.batches import Batch, build_batches
from lvlm_guard.bench.running.gathering import gather
from lvlm_guard.bench.running.manifest import Gathered, RunPlan, describe
from lvlm_guard.bench.running.prompting import PromptBuilder, find_swaps
from lvlm_guard.bench.running.store import Shard
from lvlm_guard.bench.running.system_answers import AnsweringModel, SystemAnswerer, warm_up
from lvlm_guard.bench.running.system_files import SystemFiles
from lvlm_guard.errors import InputError

SMALL = 50_000_000
"""Parameters below which more threads than one only wait."""


def run(
    plan: RunPlan,
    model: Any,
    processor: Any,
    folder: Path,
    *,
    model_id: str,
    gathered: Gathered | None = None,
    progress: bool = True,
) -> store.Record:
    """Do a run, or what is left of it.

    Args:
        plan: What to do.
        model: Any model whose `generate` is Hugging Face's.
        processor: Its processor, with a chat template.
        folder: Where the run is kept; see `store`.
        model_id: What the manifest calls the model.
        gathered: The items of the plan, if they have been read.
        progress: Whether to show a bar with the time left, where the output is a terminal.

    Returns:
        The run as it is in the folder. A system that refused is in it with its reason; the others are not touched by it. Of
        a suite that has pictures, items without one are skipped by systems that refuse them, and are counted.

    Raises:
        InputError: The data cannot be read, the processor has no chat template, memory is too small for a batch, or the
            folder holds something else or is in use.
    """
    gathered_items = gathered or gather(plan)
    check_template(processor)
    with one_thread_if_small(model):
        manifest = describe(plan, model, model_id, gathered_items)
        with store.open_run(folder, manifest, gathered_items.items, gathered_items.pictures) as check:
            batches_by_suite = {
                name: build_batches(suite_items, plan.batch) for name, suite_items in gathered_items.items.items()
            }
            shards = open_shards(plan, folder, check, batches_by_suite)
            _answer(AnsweringModel(plan, model, processor), shards, batches_by_suite, progress=progress)
    return store.read(folder)


def check_template(processor: Any) -> None:
    """Refuse a processor that writes no prompts of messages."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if not (getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
        raise InputError("The processor has no chat template, so prompts cannot be put to this model.")


def open_shards(
    plan: RunPlan, folder: Path, check: str | None, batches_by_suite: Mapping[str, Sequence[Batch]]
) -> dict[tuple[str, str], Shard]:
    """Return what keeps the answers, by system and suite; `check` is the check value of the run's manifest."""
    return {
        (system.name, name): Shard(SystemFiles(folder, check, system.name, name), suite_batches)
        for name, suite_batches in batches_by_suite.items()
        for system in plan.systems
    }


def _answer(
    job: AnsweringModel,
    shards: Mapping[tuple[str, str], Shard],
    batches_by_suite: Mapping[str, Sequence[Batch]],
    *,
    progress: bool,
) -> None:
    """Let all systems answer a batch before the next one, so that a machine that slows down slows them alike."""
    bar = tqdm(
        total=count_rows(batches_by_suite) * len(job.plan.systems), unit="answer", disable=None if progress else True
    )
    with bar:
        for name, suite_batches in batches_by_suite.items():
            done = {system.name: shards[system.name, name].finished for system in job.plan.systems}
            bar.update(sum(len(batch.items) for finished in done.values() for batch in suite_batches[:finished]))
            answerers = [
                SystemAnswerer(job, system, name, shards[system.name, name], may_skip=has_pictures(suite_batches))
                for system in job.plan.systems
            ]
            bar.set_description(name)
            items = [item for batch in suite_batches for item in batch.items]
            builder = PromptBuilder(name, job.plan.suites[name].suite, job.plan.data, find_swaps(items))
            _answer_suite(job, builder, suite_batches, answerers, bar)


def has_pictures(suite_batches: Sequence[Batch]) -> bool:
    """Return whether an item of a suite has a picture."""
    return any(item.image is not None for batch in suite_batches for item in batch.items)


def count_rows(batches_by_suite: Mapping[str, Sequence[Batch]]) -> int:
    """Return how many items some suites have."""
    return sum(len(batch.items) for suite_batches in batches_by_suite.values() for batch in suite_batches)


def _answer_suite(
    job: AnsweringModel,
    builder: PromptBuilder,
    suite_batches: Sequence[Batch],
    answerers: Sequence[SystemAnswerer],
    bar: Any,
) -> None:
    warm = False
    for batch in suite_batches:
        waiting = [candidate for candidate in answerers if candidate.waits_for(batch)]
        if waiting:
            prompts = builder.build(batch)
            if not warm:
                warm_up(job.model, job.processor, builder.name, prompts)
                warm = True
            for answerer in waiting:
                answerer.answer(batch, prompts, builder)
        bar.update(len(batch.items) * len(waiting))


@contextmanager
def one_thread_if_small(model: Any) -> Iterator[None]:
    """Use one thread on a CPU for a model so small that threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    small = model.device.type == "cpu" and sum(parameter.numel() for parameter in model.parameters()) < SMALL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
