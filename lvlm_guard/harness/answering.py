"""Answers to the questions of a harness: generated in batches by a guard, returned in order, and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from lvlm_guard.bench.scoring.margins import new_tokens
from lvlm_guard.errors import InputError
from lvlm_guard.guard import Guard
from lvlm_guard.harness.looking import AnsweredRows, generate_batch
from lvlm_guard.harness.questions import HarnessQuestion, cut_at_stop
from lvlm_guard.harness.run_cost import RunCost
from lvlm_guard.outputs import sequences
from lvlm_guard.request import conversation


@dataclass(frozen=True)
class HarnessAnswer:
    """One answer.

    Args:
        text: The text without special tokens, up to the first stop.
        tokens: Number of generated tokens, including those after a stop.
        prompt_tokens: Number of prompt tokens in the plain model, including image positions.
    """

    text: str
    tokens: int
    prompt_tokens: int


@dataclass
class Answerer:
    """A guard that answers lists of questions.

    Args:
        guard: The guard; it needs a processor.
        batch_size: Largest number of questions per call of generate.
        progress: Whether to show a progress bar.
        cost: Cost of the calls so far.
        looks: Whether questions of a batch about the same pictures go on from a look at them.
    """

    guard: Guard
    batch_size: int = 1
    progress: bool = False
    cost: RunCost = field(default_factory=RunCost)
    looks: bool = False

    def answer(self, questions: Sequence[HarnessQuestion]) -> list[HarnessAnswer]:
        """Return one answer per question, in the same order."""
        answers: dict[int, HarnessAnswer] = {}
        with tqdm(total=len(questions), desc="answering", disable=not self.progress) as bar:
            for batch in form_batches(questions, self.batch_size):
                answers.update(zip(batch, self._answer_batch([questions[index] for index in batch]), strict=True))
                bar.update(len(batch))
        return [answers[index] for index in range(len(questions))]

    def _answer_batch(self, batch: Sequence[HarnessQuestion]) -> list[HarnessAnswer]:
        answers: dict[int, HarnessAnswer] = {}
        for part in generate_batch(self.guard, batch, looks=self.looks):
            answers.update(zip(part.rows, self._read(part, [batch[row] for row in part.rows]), strict=True))
        return [answers[row] for row in range(len(batch))]

    def _read(self, part: AnsweredRows, batch: Sequence[HarnessQuestion]) -> list[HarnessAnswer]:
        """Return the answers of one call, and count its cost."""
        output, start = sequences(part.output), part.report.answer_start
        generated = output[:, start:].cpu()
        if len(generated) != len(batch):
            raise InputError("A harness scores one answer per question: leave num_return_sequences out.")
        counts = new_tokens(generated, *find_end_tokens(self.guard))
        self.cost.add(part.report, requests=len(batch), tokens=sum(counts), seconds=part.seconds)
        texts = conversation.decode_answers(self.guard.processor, output, start, many=True)
        rows = zip(batch, texts, counts, part.inputs["attention_mask"].sum(1).tolist(), strict=True)
        return [
            HarnessAnswer(cut_at_stop(text, question.stops), count, prompt_tokens)
            for question, text, count, prompt_tokens in rows
        ]


def find_end_tokens(guard: Guard) -> tuple[list[int], int | None]:
    """Return the ids that end an answer, and the id that pads a row."""
    ends = getattr(guard.model.generation_config, "eos_token_id", None)
    tokenizer: Any = getattr(guard.processor, "tokenizer", guard.processor)
    ids = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
    return ids, tokenizer.pad_token_id


def form_batches(questions: Sequence[HarnessQuestion], size: int) -> Iterator[list[int]]:
    """Yield the indices of questions that share a call: same settings, and either all or none have a picture."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for index, question in enumerate(questions):
        groups.setdefault((repr(sorted(question.settings.items())), question.has_picture), []).append(index)
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))
