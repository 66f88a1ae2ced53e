"""The engine of a server round vLLM: a thread that steps it, and requests that join and leave between steps."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.transformers_utils.processor import cached_processor_from_config

from lvlm_guard.engines.vllm.llm import ERROR, GuardedLLM
from lvlm_guard.errors import GuardError
from lvlm_guard.host.stack import Stack
from lvlm_guard.serving.answer_rows import AnswerRow, OpenJob
from lvlm_guard.serving.answer_text import AnswerText
from lvlm_guard.serving.api_errors import ApiError, describe_lateness, describe_stopping
from lvlm_guard.serving.engine import ChatJob, Emit, JobEnd, JobEvent, follow_events
from lvlm_guard.serving.settings import ServingLimits
from lvlm_guard.serving.structured_logs import log_failure

IDLE_SECONDS = 0.05
"""How long the worker waits for a request while it has none."""


class VllmEngine:
    """Answers requests by groups in vLLM; see `lvlm_guard.serving.engine.Engine` for what each method promises.

    Requests of all stacks share the engine's steps. Those without a picture are answered plainly, as the other engine does where it
    serves.

    Args:
        llm: The engine, which belongs to the worker thread from now on.
        stacks: The stacks that requests may choose, by name.
        limits: Tokens of an answer, seconds.
    """

    def __init__(self, llm: GuardedLLM, stacks: Mapping[str, Stack], limits: ServingLimits) -> None:
        self._llm, self._stacks, self._limits = llm, dict(stacks), limits
        self.processor = cached_processor_from_config(llm.model_config)
        self._defaults = llm.get_default_sampling_params()
        self._ends = _list_ends(llm)
        self._arrived: queue.SimpleQueue[OpenJob] = queue.SimpleQueue()
        self._rows: dict[str, AnswerRow] = {}  # by request of the engine
        self._lengths: weakref.WeakKeyDictionary[OpenJob, int] = weakref.WeakKeyDictionary()
        self._is_stopping = False
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="lvlm-guard-vllm", daemon=True)
        self._thread.start()

    @property
    def stacks(self) -> Mapping[str, tuple[str, ...]]:
        """Names of stacks, with those of their strategies."""
        return {name: stack.names for name, stack in self._stacks.items()}

    @property
    def default_temperature(self) -> float:
        """0: nothing is drawn unless a request asks for it."""
        return 0.0

    @property
    def default_top_p(self) -> float:
        """The checkpoint's; 1 where it says nothing."""
        return float(self._defaults.top_p)

    @property
    def is_alive(self) -> bool:
        """Whether the worker takes requests."""
        return self._thread.is_alive() and not self._is_stopping and self._broken is None

    @property
    def waiting(self) -> int:
        """Requests that the worker has not taken yet."""
        return self._arrived.qsize()

    @property
    def seconds_to_wait(self) -> float:
        """0: requests join at the next step."""
        return 0.0

    def check(self, job: ChatJob) -> None:
        """Refuse reports, and sampling where the engine cannot draw by a request's own seed."""
        if job.wants_report:
            raise ApiError(422, "This engine keeps no report of a request: leave 'report' out.", "guard_refused")
        if job.sampling is not None and self._llm.runs_on_cpu:
            raise ApiError(
                422,
                "This engine cannot draw by a request's seed on a CPU: set temperature to 0.",
                "sampling_refused",
            )

    def answer(self, job: ChatJob) -> AsyncGenerator[JobEvent, None]:
        """Hand a request to the worker, and yield what it passes on."""

        def hand_over(emit: Emit) -> OpenJob:
            if not self.is_alive:
                raise describe_stopping()
            request = OpenJob(job, emit)
            self._arrived.put(request)
            return request

        return follow_events(job, hand_over)

    def stop(self) -> None:
        """Answer what is open, then end the worker; after `drain_seconds` it is left to die with the process."""
        self._is_stopping = True
        self._thread.join(self._limits.drain_seconds)

    def _work(self) -> None:
        while self._rows or not self._arrived.empty() or not self._is_stopping:
            self._take_arrived()
            self._give_up_abandoned()
            if not self._rows:
                continue
            try:
                outputs = self._llm.llm_engine.step()
            except Exception as error:  # noqa: BLE001 - the engine cannot be trusted after any error of its own
                self._break_down(error)
                return
            for output in outputs:
                self._accept(output)

    def _take_arrived(self) -> None:
        """Queue requests that came; waits a moment where nothing runs."""
        try:
            while True:
                request = self._arrived.get(timeout=0 if self._rows else IDLE_SECONDS)
                self._begin(request)
        except queue.Empty:
            return

    def _begin(self, request: OpenJob) -> None:
        if request.is_over:
            return
        if request.is_late:
            request.fail(describe_lateness())
            return
        try:
            self._queue_choices(request)
        except Exception as error:  # noqa: BLE001 - templates, processors and strategies are foreign code
            if not isinstance(error, (GuardError, ApiError)):
                log_failure(error, stack=request.job.stack, rows=request.job.choices)
            self._leave(request)
            request.fail(error)

    def _queue_choices(self, request: OpenJob) -> None:
        """Queue a request of the engine for each choice.

        Raises:
            ApiError: Prompt and answer exceed the context.
        """
        job = request.job
        rendered = self._llm.render(self._write_prompt(job.messages))
        length = len(rendered["prompt_token_ids"])
        limit = self._limit_tokens(job, length)
        self._lengths[request] = length
        stack = self._stacks[job.stack] if job.has_pictures else Stack.of(None)
        for choice in range(job.choices):
            row = AnswerRow(request, choice, AnswerText(self._decode, job.stops), self._ends, limit)
            request.rows.append(row)
            name = self._llm.add(rendered, self._choose_parameters(job, choice, limit), stack)
            self._rows[name] = row

    def _limit_tokens(self, job: ChatJob, length: int) -> int:
        """Return how many tokens an answer may have behind a prompt of some length."""
        context = int(self._llm.model_config.max_model_len)
        if context - length < (job.max_tokens or 1):
            raise ApiError(
                400,
                f"This model's maximum context length is {context} tokens. The prompt has {length}, pictures included, and the answer "
                f"may have {job.max_tokens or 1}. Shorten one of them.",
                "context_length_exceeded",
                param="messages",
            )
        return min(job.max_tokens or self._limits.max_tokens, context - length)

    def _write_prompt(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        text = str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        pictures = [part["image"] for part in parts if part["type"] == "image"]
        return {"prompt": text, "multi_modal_data": {"image": pictures}} if pictures else {"prompt": text}

    def _choose_parameters(self, job: ChatJob, choice: int, limit: int) -> SamplingParams:
        """Return the parameters of one choice: the request's, and what else the checkpoint sets."""
        defaults, sampling = self._defaults, job.sampling
        drawn: dict[str, Any] = {"temperature": 0.0}
        if sampling is not None:
            drawn = {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": (sampling.seed + choice) % 2**63,
            }
            drawn |= {"top_k": defaults.top_k, "min_p": defaults.min_p}
        return SamplingParams(
            max_tokens=limit,
            repetition_penalty=defaults.repetition_penalty,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **drawn,
        )

    def _accept(self, output: Any) -> None:
        """Pass on what a step gave to one choice."""
        row = self._rows.get(output.request_id)
        if row is None:
            return
        answer = output.outputs[0]
        for token in answer.token_ids:
            row.accept(token)
        if answer.finish_reason == ERROR:
            row.request.fail(ApiError(500, str(answer.stop_reason), "guard_failed"))
        if output.finished:
            if row.is_open:
                row.close("length")
            del self._rows[output.request_id]
        elif not row.is_open:
            self._abort([output.request_id])
        self._complete(row.request)

    def _complete(self, request: OpenJob) -> None:
        """End a request whose choices have all ended."""
        if request.rows and all(row.reason is not None for row in request.rows):
            generated = sum(len(row.text.ids) for row in request.rows)
            request.complete(JobEnd(self._lengths[request], generated, 1))

    def _give_up_abandoned(self) -> None:
        """Abort what nobody waits for any more, and what is late."""
        for row in self._rows.values():
            if row.request.is_late:
                row.request.fail(describe_lateness())
        self._abort([name for name, row in self._rows.items() if row.request.is_over])

    def _leave(self, request: OpenJob) -> None:
        """Abort the choices of a request that could not all be queued."""
        self._abort([name for name, row in self._rows.items() if row.request is request])

    def _abort(self, names: list[str]) -> None:
        for name in names:
            del self._rows[name]
        if names:
            self._llm.llm_engine.abort_request(names)

    def _break_down(self, error: BaseException) -> None:
        """End all requests after an error of the engine itself."""
        self._broken = error
        log_failure(error, stack="", rows=len(self._rows))
        requests = {row.request for row in self._rows.values()}
        while not self._arrived.empty():
            requests.add(self._arrived.get())
        for request in requests:
            request.fail(ApiError(500, "The engine broke down. The server has to be started again.", "engine_failed"))

    def _decode(self, ids: list[int]) -> str:
        texts: list[str] = self.processor.batch_decode([ids], skip_special_tokens=True)
        return texts[0]


def _list_ends(llm: GuardedLLM) -> frozenset[int]:
    """Return ids that end an answer."""
    named = llm.model_config.try_get_generation_config().get("eos_token_id")
    of_tokenizer = llm.get_tokenizer().eos_token_id
    return frozenset(named if isinstance(named, list) else [named if isinstance(named, int) else of_tokenizer])
