"""One guarded batch: inputs of all rows, their generation, and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.call.report import Report
from lvlm_guard.errors import GuardError, shorten
from lvlm_guard.guard import Guard
from lvlm_guard.outputs import sequences
from lvlm_guard.serving.answer_rows import AnswerRow, OpenJob
from lvlm_guard.serving.answer_text import AnswerText
from lvlm_guard.serving.api_errors import ApiError, describe_failure
from lvlm_guard.serving.engine import JobEnd, SampledChoice
from lvlm_guard.serving.row_processors import RowMonitor, RowSampler

LONGEST_REASON = 300
ONE_ANSWER = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
"""Settings of every batch, whatever the checkpoint's generation config says; sampled rows are drawn by a processor."""


class BatchRunner:
    """Runs batches on one model, one after the other.

    Args:
        guard: The model and its processor.
        guards: A guard for each stack, by name.
        max_tokens: Tokens of an answer, at most.
        top_k: Tokens that may be drawn; 0 for all.
    """

    def __init__(self, guard: Guard, guards: Mapping[str, Guard], max_tokens: int, top_k: int) -> None:
        self._guard = guard
        self._guards = guards
        self._max_tokens = max_tokens
        self._top_k = top_k
        self._context = find_context_length(guard.model)
        self._ends = _list_ends(guard.model)

    def run(self, requests: Sequence[OpenJob], *, streams: bool) -> None:
        """Answer requests of one stack in one batch; `streams` says whether tokens are final when they come.

        Raises:
            Exception: What the model, the processor or a strategy raises; answers may have begun, and go on when run again.
        """
        for request in requests:
            self._open_rows(request)
        batch = self._prepare(requests)
        fitting = [request for request in requests if not request.is_over]
        if len(fitting) < len(requests):
            if fitting:
                self.run(fitting, streams=streams)
            return
        rows = [row for request in requests for row in request.rows]
        output, report = self._generate(requests, rows, batch, streams=streams)
        answers = sequences(output)[:, report.answer_start :].tolist()
        lengths = _measure_prompts(batch)
        for row, answer in zip(rows, answers, strict=True):
            _finish(row, [] if streams else answer)
        for request in requests:
            length = lengths[rows.index(request.rows[0])]
            generated = sum(len(row.text.ids) for row in request.rows)
            summary = _describe_report(report) if request.job.wants_report else None
            request.complete(JobEnd(length, generated, len(rows), summary))

    def explain(self, request: OpenJob, error: BaseException) -> ApiError:
        """Return what a request is told that failed alone: whether the model itself, unguarded, cannot answer it."""
        if isinstance(error, GuardError):
            return describe_failure(error)
        try:
            batch = self._guard.inputs(messages=[request.job.messages])
            self._guard.using(None).generate(**batch, **ONE_ANSWER, max_new_tokens=1)
        except Exception as reason:  # noqa: BLE001 - models and processors are foreign code
            message = shorten(str(reason).strip().split("\n")[0], LONGEST_REASON) or type(reason).__name__
            return ApiError(422, f"The model itself cannot answer this request: {message}", "model_cannot_answer")
        return describe_failure(error)

    def _open_rows(self, request: OpenJob) -> None:
        if not request.rows:
            request.rows = [
                AnswerRow(request, choice, AnswerText(self._decode, request.job.stops), self._ends, self._max_tokens)
                for choice in range(request.job.choices)
            ]
        for row in request.rows:
            row.restart()

    def _prepare(self, requests: Sequence[OpenJob]) -> Any:
        """Return the inputs of all rows, and fail requests that are too long for the model."""
        batch = self._guard.inputs(messages=[request.job.messages for request in requests for _ in request.rows])
        lengths, first = _measure_prompts(batch), 0
        for request in requests:
            self._set_limits(request, lengths[first])
            first += len(request.rows)
        return batch

    def _set_limits(self, request: OpenJob, length: int) -> None:
        """Set how many tokens each answer may have, or fail a request whose prompt and answer exceed the context."""
        room = self._max_tokens if self._context is None else self._context - length
        limit = request.job.max_tokens
        if room < (limit or 1):
            request.fail(
                ApiError(
                    400,
                    f"This model's maximum context length is {self._context} tokens. The prompt has {length}, pictures included, and "
                    f"the answer may have {limit or 1}. Shorten one of them.",
                    "context_length_exceeded",
                    param="messages",
                )
            )
        for row in request.rows:
            row.limit = min(limit or self._max_tokens, room)

    def _generate(
        self, requests: Sequence[OpenJob], rows: Sequence[AnswerRow], batch: Mapping[str, Any], *, streams: bool
    ) -> tuple[Any, Any]:
        settings: dict[str, Any] = {**ONE_ANSWER, "max_new_tokens": max(row.limit for row in rows)}
        if streams:
            settings["stopping_criteria"] = [RowMonitor(rows)]
        draws = [_choose_draw(row) for row in rows]
        if draws and all(draw is not None for draw in draws):
            settings["logits_processor"] = [RowSampler([draw for draw in draws if draw is not None], self._top_k)]
        with torch.no_grad():
            return self._guards[requests[0].job.stack].generate_with_report(**batch, **settings)

    def _decode(self, ids: list[int]) -> str:
        texts: list[str] = self._guard.processor.batch_decode([ids], skip_special_tokens=True)
        return texts[0]


def find_context_length(model: Any) -> int | None:
    """Return how many tokens a model takes, prompt and answer together; None where its config does not say."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _describe_report(report: Report) -> dict[str, Any]:
    """Return a report as clients may see it: without the folder that the model was loaded from."""
    summary = report.summarize()
    if summary["origin"] is not None:
        del summary["origin"]["model"]
    return summary


def _choose_draw(row: AnswerRow) -> SampledChoice | None:
    """Return how a row is sampled: the seed of its request, counted on by choice."""
    sampling = row.request.job.sampling
    if sampling is None:
        return None
    seed = (sampling.seed + row.choice) % 2**63
    return SampledChoice(sampling.temperature, sampling.top_p, seed)


def _finish(row: AnswerRow, tokens: Sequence[int]) -> None:
    """Give a row the tokens of a whole answer, and close it where generate ended before it did."""
    for token in tokens:
        row.accept(token)
    if row.is_open:
        row.close("length")


def _measure_prompts(batch: Mapping[str, Any]) -> list[int]:
    """Return the tokens of each prompt, without padding."""
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor):
        lengths: list[int] = mask.sum(1).tolist()
        return lengths
    rows, length = batch["input_ids"].shape
    return [length] * rows


def _list_ends(model: Any) -> frozenset[int]:
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return frozenset([ends] if isinstance(ends, int) else ends or ())
