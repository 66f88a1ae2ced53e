"""Answers what a harness asks: batched by a guard, in the order asked, and counted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from lvlm_guard.bench.scoring.margins import new_tokens
from lvlm_guard.errors import InputError
from lvlm_guard.guard import Guard
from lvlm_guard.harness.asked import Asked, cut
from lvlm_guard.harness.tally import Tally
from lvlm_guard.outputs import sequences
from lvlm_guard.request import conversation


@dataclass(frozen=True)
class Said:
    """An answer.

    Args:
        text: Without special tokens, up to the first stop.
        tokens: Generated for it, those behind a stop included.
        prompt_tokens: Of its prompt in the plain model, image positions included.
    """

    text: str
    tokens: int
    prompt_tokens: int


@dataclass
class Answerer:
    """A guard that answers lists of conversations.

    Args:
        guard: With a processor.
        rows: Conversations per call of generate, at most.
        progress: Whether to show a bar.
        tally: What the calls so far have cost.
    """

    guard: Guard
    rows: int = 1
    progress: bool = False
    tally: Tally = field(default_factory=Tally)

    def answer(self, asked: Sequence[Asked]) -> list[Said]:
        """One answer per conversation, in their order."""
        said: dict[int, Said] = {}
        with tqdm(total=len(asked), desc="answering", disable=not self.progress) as bar:
            for batch in batches(asked, self.rows):
                said.update(zip(batch, self._answer([asked[index] for index in batch]), strict=True))
                bar.update(len(batch))
        return [said[index] for index in range(len(asked))]

    def _answer(self, batch: Sequence[Asked]) -> list[Said]:
        inputs = self.guard.inputs(messages=[one.messages for one in batch])
        started = time.perf_counter()
        output = sequences(self.guard.generate(**inputs, **batch[0].settings))
        generated = output[:, inputs["input_ids"].shape[1] :].cpu()
        seconds = time.perf_counter() - started
        if len(generated) != len(batch):
            raise InputError("A harness scores one answer per question: leave num_return_sequences out.")
        counts = new_tokens(generated, *end_tokens(self.guard))
        self.tally.add(self.guard.report, requests=len(batch), tokens=sum(counts), seconds=seconds)
        texts = conversation.answers(self.guard.processor, inputs, output, many=True)
        told = zip(batch, texts, counts, inputs["attention_mask"].sum(1).tolist(), strict=True)
        return [Said(cut(text, one.until), count, prompt) for one, text, count, prompt in told]


def end_tokens(guard: Guard) -> tuple[list[int], int | None]:
    """Ids that end an answer, and the id that pads a row."""
    ends = getattr(guard.model.generation_config, "eos_token_id", None)
    tokenizer: Any = getattr(guard.processor, "tokenizer", guard.processor)
    return [one for one in (ends if isinstance(ends, list) else [ends]) if one is not None], tokenizer.pad_token_id


def batches(asked: Sequence[Asked], rows: int) -> Iterator[list[int]]:
    """Numbers of the conversations that share a call: of equal settings, all with or all without a picture."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for index, one in enumerate(asked):
        groups.setdefault((repr(sorted(one.settings.items())), one.has_picture), []).append(index)
    for group in groups.values():
        yield from (group[start : start + rows] for start in range(0, len(group), rows))
