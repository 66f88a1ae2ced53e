"""Units of a file in vLLM: many are open at once and share the engine's steps, each question a group of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.transformers_utils.processor import cached_processor_from_config

from lvlm_guard.bulk.answerers import read_unit_picture
from lvlm_guard.bulk.pools import UnitAnswers, UnitFailure, WorkerBroken, WorkerEvent, WorkerReady
from lvlm_guard.bulk.units import BulkUnit, RejectedLine
from lvlm_guard.engines.errors import EngineFailed
from lvlm_guard.engines.vllm.llm import ERROR, GuardedLLM
from lvlm_guard.fitting import check_chat_template
from lvlm_guard.host.stack import Stack
from lvlm_guard.request.conversation import write_question

OPEN_UNITS = 32
"""Units that are open at once; the engine admits as many of their requests as have room."""


@dataclass
class _OpenUnit:
    """A unit whose questions are being answered.

    Args:
        worker: Its place in the pool.
        names: Of its requests, in the order of its questions.
        texts: Answers that are there, by request.
    """

    worker: int
    names: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


class VllmPool:
    """One engine as a pool of as many workers as it may have units open.

    Args:
        llm: The engine.
        stack: Of every answer.
        settings: `max_new_tokens`.
        size: Units that are open at once.

    Raises:
        InputError: The model's processor has no chat template.
    """

    def __init__(self, llm: GuardedLLM, stack: Stack, settings: Mapping[str, Any], size: int = OPEN_UNITS) -> None:
        self.size = size
        self._llm, self._stack = llm, stack
        self._processor = cached_processor_from_config(llm.model_config)
        check_chat_template(self._processor)
        self._longest = int(settings["max_new_tokens"])
        self._events: list[tuple[int, WorkerEvent]] = [(worker, WorkerReady()) for worker in range(size)]
        self._open: dict[str, _OpenUnit] = {}

    def submit(self, worker: int, unit: BulkUnit) -> None:
        """Queue the questions of a unit."""
        opened = _OpenUnit(worker)
        try:
            picture = read_unit_picture(unit)
            for question in unit.questions:
                name = self._llm.add(self._render(picture, question), self._choose_parameters(), self._stack)
                opened.names.append(name)
                self._open[name] = opened
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - pictures, templates and strategies are foreign; the other units go on
            self._fail(opened, RejectedLine.of_error(unit.line, error).reason)

    def wait(self) -> list[tuple[int, WorkerEvent]]:
        """Step the engine until a unit is answered, unless something has happened before."""
        while not self._events and self._open:
            try:
                outputs = self._llm.llm_engine.step()
            except Exception as error:  # noqa: BLE001 - the engine cannot be trusted after any error of its own
                worker = next(iter(self._open.values())).worker
                return [(worker, WorkerBroken(EngineFailed(f"vLLM broke down: {type(error).__name__}: {error}", [])))]
            for output in outputs:
                self._accept(output)
        events, self._events = self._events, []
        return events

    def replace(self, worker: int) -> None:
        """Is never called: the engine dies with its caller."""

    def close(self) -> None:
        """Give up what is open."""
        self._abort(list(self._open))

    def _render(self, picture: Any, question: str) -> Any:
        messages = [write_question(question, picture)]
        text = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self._llm.render({"prompt": text, "multi_modal_data": {"image": [picture]}})

    def _choose_parameters(self) -> SamplingParams:
        return SamplingParams(
            temperature=0.0,
            max_tokens=self._longest,
            repetition_penalty=self._llm.get_default_sampling_params().repetition_penalty,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _accept(self, output: Any) -> None:
        """Keep an answer, and say so where it is the last of its unit."""
        opened = self._open.get(output.request_id)
        if opened is None or not output.finished:
            return
        answer = output.outputs[0]
        if answer.finish_reason == ERROR:
            self._fail(opened, str(answer.stop_reason))
            return
        del self._open[output.request_id]
        text = self._processor.batch_decode([list(answer.token_ids)], skip_special_tokens=True)[0]
        opened.texts[output.request_id] = text.strip()
        if len(opened.texts) == len(opened.names):
            texts = tuple(opened.texts[name] for name in opened.names)
            self._events.append((opened.worker, UnitAnswers(texts)))

    def _fail(self, opened: _OpenUnit, reason: str) -> None:
        self._abort([name for name in opened.names if name in self._open])
        self._events.append((opened.worker, UnitFailure(reason)))

    def _abort(self, names: list[str]) -> None:
        for name in names:
            del self._open[name]
        if names:
            self._llm.llm_engine.abort_request(names)
