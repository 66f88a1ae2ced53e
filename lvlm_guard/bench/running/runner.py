"""Put every item of some suites to every system, and store each raw answer as soon as it exists."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running import store
from lvlm_guard.bench.running.batches import Batch, build_batches
from lvlm_guard.bench.running.gathering import gather
from lvlm_guard.bench.running.looking import BatchGenerator, GeneratedRows
from lvlm_guard.bench.running.manifest import DECODING, Gathered, RunPlan, describe
from lvlm_guard.bench.running.prompting import Conversation, PromptBuilder, find_swaps
from lvlm_guard.bench.running.store import Shard
from lvlm_guard.bench.running.system_files import COST_NUMBERS, SKIPPED, Answer, SystemFiles, SystemRefusal
from lvlm_guard.bench.running.systems import GREEDY, SAMPLING, System
from lvlm_guard.bench.scoring import margins
from lvlm_guard.call.looks.parts import join_reports
from lvlm_guard.call.report import Report
from lvlm_guard.errors import GuardError, InputError, NoEffectWarning, Refused
from lvlm_guard.guard import Guard
from lvlm_guard.host.plugins import is_marked

SMALL = 50_000_000
"""Parameters below which more threads than one only wait."""

OWN_LOOPS = ("search", "finish")
"""Hooks after which the logits of the first token no longer say what is answered."""


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
    _check_template(processor)
    with one_thread_if_small(model):
        manifest = describe(plan, model, model_id, gathered_items)
        with store.open_run(folder, manifest, gathered_items.items, gathered_items.pictures) as check:
            batches_by_suite = {
                name: build_batches(suite_items, plan.batch) for name, suite_items in gathered_items.items.items()
            }
            _answer(_Job(plan, model, processor, folder, check), batches_by_suite, progress=progress)
    return store.read(folder)


def _check_template(processor: Any) -> None:
    tokenizer = getattr(processor, "tokenizer", processor)
    if not (getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
        raise InputError("The processor has no chat template, so prompts cannot be put to this model.")


@dataclass(frozen=True)
class _Job:
    """The plan, model and folder of a run, and the check value of its manifest."""

    plan: RunPlan
    model: Any
    processor: Any
    folder: Path
    check: str | None


def _answer(job: _Job, batches_by_suite: Mapping[str, Sequence[Batch]], *, progress: bool) -> None:
    """Let all systems answer a batch before the next one, so that a machine that slows down slows them alike."""
    shards = {
        (system.name, name): Shard(SystemFiles(job.folder, job.check, system.name, name), suite_batches)
        for name, suite_batches in batches_by_suite.items()
        for system in job.plan.systems
    }
    bar = tqdm(total=_rows(batches_by_suite) * len(job.plan.systems), unit="answer", disable=None if progress else True)
    with bar:
        for name, suite_batches in batches_by_suite.items():
            done = {system.name: shards[system.name, name].finished for system in job.plan.systems}
            bar.update(sum(len(batch.items) for finished in done.values() for batch in suite_batches[:finished]))
            answerers = [
                _Answerer(job, system, name, shards[system.name, name], may_skip=_has_pictures(suite_batches))
                for system in job.plan.systems
            ]
            bar.set_description(name)
            items = [item for batch in suite_batches for item in batch.items]
            builder = PromptBuilder(name, job.plan.suites[name].suite, job.plan.data, find_swaps(items))
            _answer_suite(job, builder, suite_batches, answerers, bar)


def _has_pictures(suite_batches: Sequence[Batch]) -> bool:
    return any(item.image is not None for batch in suite_batches for item in batch.items)


def _rows(batches_by_suite: Mapping[str, Sequence[Batch]]) -> int:
    return sum(len(batch.items) for suite_batches in batches_by_suite.values() for batch in suite_batches)


def _answer_suite(
    job: _Job, builder: PromptBuilder, suite_batches: Sequence[Batch], answerers: Sequence[_Answerer], bar: Any
) -> None:
    warm = False
    for batch in suite_batches:
        waiting = [candidate for candidate in answerers if candidate.waits_for(batch)]
        if waiting:
            prompts = builder.build(batch)
            if not warm:
                _warm_up(job, builder.name, prompts)
                warm = True
            for answerer in waiting:
                answerer.answer(batch, prompts, builder)
        bar.update(len(batch.items) * len(waiting))


def _warm_up(job: _Job, suite: str, prompts: Sequence[Any]) -> None:
    """Make the first call of the process, whose set-up time would be charged to whichever system goes first.

    Raises:
        InputError: The model cannot take the pictures or prompts of the suite.
    """
    guard = Guard(job.model, job.processor, [])
    try:
        guard.generate(**guard.inputs(messages=prompts[:1]), **DECODING[GREEDY], max_new_tokens=2)
    except GuardError:
        raise
    except ValueError as problem:
        raise InputError(
            f"{suite}: the model cannot take what this suite asks it, even without a strategy: {problem} Name another model."
        ) from problem


class _Answerer:
    """One system that answers one suite."""

    def __init__(self, job: _Job, system: System, suite: str, shard: Shard, *, may_skip: bool) -> None:
        self._job, self._system, self._suite, self._shard = job, system, suite, shard
        self._may_skip = may_skip
        self._tokenizer = getattr(job.processor, "tokenizer", job.processor)
        owns = any(is_marked(getattr(strategy, hook, None)) for strategy in system.stack for hook in OWN_LOOPS)
        self._yes_no = None if owns else margins.Tokens.of(self._tokenizer)
        self._refused = False

    def waits_for(self, batch: Batch) -> bool:
        """Return whether the batch is still to be answered."""
        return not self._refused and batch.number >= self._shard.finished

    def answer(self, batch: Batch, prompts: Sequence[Conversation], builder: PromptBuilder) -> None:
        """Answer a batch, or keep why not; a batch without pictures is skipped where the system needs them."""
        try:
            system_prompts = builder.build_swapped(batch) if self._system.swapped_picture else prompts
            company = builder.company(batch) if self._system.is_evidence_swapped else None
            answers, cost = self._generate(batch, system_prompts, company)
        except GuardError as error:
            if self._may_skip and batch.is_text_only and isinstance(error, (Refused, InputError)):
                self._skip(batch, str(error))
                return
            self._refused = True
            self._shard.refuse(SystemRefusal(batch.number, type(error).__name__, str(error)))
            return
        except torch.cuda.OutOfMemoryError as error:
            raise InputError(
                f"{self._system.name}: the memory is too small for {len(batch.items)} rows at once. Begin another folder "
                "with a smaller --batch."
            ) from error
        self._shard.append(answers, cost)

    def _skip(self, batch: Batch, reason: str) -> None:
        cost: dict[str, Any] = {"batch": batch.number, **dict.fromkeys(COST_NUMBERS, 0), "rows": len(batch.items)}
        answers = [Answer(item.id, "", 0, None, skipped=True) for item in batch.items]
        self._shard.append(answers, {**cost, "executor": None, SKIPPED: reason})

    def _generate(
        self, batch: Batch, prompts: Sequence[Conversation], company: Conversation | None
    ) -> tuple[list[Answer], dict[str, Any]]:
        """Answer a batch; a row that is there for company is generated and left out."""
        items = batch.items if company is None else (*batch.items, batch.items[0])
        looks = self._job.plan.looks and not self._system.is_evidence_swapped  # a look is at one picture
        all_prompts = prompts if company is None else [*prompts, company]
        # A guard remembers the pictures of its last calls, so one for the whole run would hold many.
        guard = Guard(self._job.model, self._job.processor, self._system.stack)
        settings = {**DECODING[SAMPLING if self._system.sampled else GREEDY], "max_new_tokens": batch.max_new_tokens}
        generator = BatchGenerator(guard, settings, functools.partial(self._recorder, batch))
        with self._seeded(batch), warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # the share of changed answers says it once
            parts, seconds = generator.generate(items, all_prompts, looks=looks)
        answers = [answer for part in parts for answer in self._read(items, part)]
        answers = [answers[row] for row in _order_rows(parts)][: len(batch.items)]
        report = (
            parts[0].report
            if len(parts) == 1
            else join_reports([part.report for part in parts], [part.rows for part in parts])
        )
        return answers, _cost(batch, report, sum(answer.tokens for answer in answers), seconds)

    def _recorder(self, batch: Batch) -> margins.MarginRecorder | None:
        return margins.MarginRecorder(self._yes_no) if self._yes_no and margins.asks_yes_no(batch.items) else None

    def _read(self, items: Sequence[Item], part: GeneratedRows) -> list[Answer]:
        texts = self._tokenizer.batch_decode(part.tokens, skip_special_tokens=True)
        counts = margins.new_tokens(part.tokens, self._ends(), self._tokenizer.pad_token_id)
        row_margins = part.recorder.margins(len(texts)) if part.recorder is not None else [None] * len(texts)
        rows = zip([items[row] for row in part.rows], texts, counts, row_margins, strict=True)
        return [
            Answer(item.id, text, tokens, None if margins.says_yes(item.truth) is None else margin)
            for item, text, tokens, margin in rows
        ]

    def _ends(self) -> list[int]:
        ends = getattr(self._job.model.generation_config, "eos_token_id", None)
        return [token for token in (ends if isinstance(ends, list) else [ends]) if token is not None]

    @contextmanager
    def _seeded(self, batch: Batch) -> Iterator[None]:
        """Give every batch random numbers of its own, the same for all systems.

        The caller's state is restored afterwards.
        """
        device = self._job.model.device
        words = f"{self._job.plan.seed} {self._suite} {batch.number}".encode()
        seed = int.from_bytes(hashlib.blake2b(words, digest_size=7).digest(), "big")
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def _order_rows(parts: Sequence[GeneratedRows]) -> list[int]:
    """Return where each row of a batch stands among the rows of its parts, one after the other."""
    rows = [row for part in parts for row in part.rows]
    return sorted(range(len(rows)), key=rows.__getitem__)


def _cost(batch: Batch, report: Report, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        "batch": batch.number,
        "rows": len(batch.items),
        "tokens": tokens,
        "seconds": round(seconds, 6),
        "prefill": report.forwards.prefill,
        "decode": report.forwards.decode,
        "rows_per_forward": report.rows_per_forward,
        "executor": report.executor,
    }


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
