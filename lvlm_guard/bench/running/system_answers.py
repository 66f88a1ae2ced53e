"""One system's answers to a batch: generated, read, and kept with what they cost."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lvlm_guard.bench.items import Item
from lvlm_guard.bench.running.batches import Batch
from lvlm_guard.bench.running.looking import BatchGenerator, GeneratedRows
from lvlm_guard.bench.running.manifest import DECODING, RunPlan
from lvlm_guard.bench.running.prompting import Conversation, PromptBuilder
from lvlm_guard.bench.running.system_files import COST_NUMBERS, SKIPPED, Answer, SystemRefusal
from lvlm_guard.bench.running.systems import GREEDY, SAMPLING, System
from lvlm_guard.bench.scoring import margins
from lvlm_guard.call.looks.parts import join_reports
from lvlm_guard.call.report import Report
from lvlm_guard.errors import GuardError, InputError, NoEffectWarning, Refused
from lvlm_guard.guard import Guard
from lvlm_guard.host.plugins import is_marked

OWN_LOOPS = ("search", "finish")
"""Hooks after which the logits of the first token no longer say what is answered."""


def warm_up(model: Any, processor: Any, suite: str, prompts: Sequence[Any]) -> None:
    """Make the first call of the process, whose set-up time would be charged to whichever system goes first.

    Raises:
        InputError: The model cannot take the pictures or prompts of the suite.
    """
    guard = Guard(model, processor, [])
    try:
        guard.generate(**guard.inputs(messages=prompts[:1]), **DECODING[GREEDY], max_new_tokens=2)
    except GuardError:
        raise
    except ValueError as problem:
        raise InputError(
            f"{suite}: the model cannot take what this suite asks it, even without a strategy: {problem} Name another model."
        ) from problem


class AnswerSink(Protocol):
    """What keeps the answers of one system to one suite."""

    finished: int
    """Batches that need not be done again."""

    def append(self, answers: Sequence[Answer], cost: Mapping[str, Any]) -> None:
        """Keep the answers to the next batch."""

    def refuse(self, refusal: SystemRefusal) -> None:
        """Keep why there are no more answers."""


@dataclass(frozen=True)
class AnsweringModel:
    """A plan and the model that carries it out."""

    plan: RunPlan
    model: Any
    processor: Any


class SystemAnswerer:
    """One system that answers one suite.

    Args:
        job: The plan and the model.
        system: The system.
        suite: Name of the suite in the run.
        sink: Gets the answers.
        may_skip: Whether batches without pictures are skipped where the system needs them.
    """

    def __init__(self, job: AnsweringModel, system: System, suite: str, sink: AnswerSink, *, may_skip: bool) -> None:
        self._job, self._system, self._suite, self._sink = job, system, suite, sink
        self._may_skip = may_skip
        self._tokenizer = getattr(job.processor, "tokenizer", job.processor)
        owns = any(is_marked(getattr(strategy, hook, None)) for strategy in system.stack for hook in OWN_LOOPS)
        self._yes_no = None if owns else margins.Tokens.of(self._tokenizer)
        self._refused = False

    def waits_for(self, batch: Batch) -> bool:
        """Return whether the batch is still to be answered."""
        return not self._refused and batch.number >= self._sink.finished

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
            self._sink.refuse(SystemRefusal(batch.number, type(error).__name__, str(error)))
            return
        except torch.cuda.OutOfMemoryError as error:
            raise InputError(
                f"{self._system.name}: the memory is too small for {len(batch.items)} rows at once. Begin another folder "
                "with a smaller --batch."
            ) from error
        self._sink.append(answers, cost)

    def _skip(self, batch: Batch, reason: str) -> None:
        cost: dict[str, Any] = {"batch": batch.number, **dict.fromkeys(COST_NUMBERS, 0), "rows": len(batch.items)}
        answers = [Answer(item.id, "", 0, None, skipped=True) for item in batch.items]
        self._sink.append(answers, {**cost, "executor": None, SKIPPED: reason})

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
