"""The public door: a guard round one model."""

from __future__ import annotations

import copy
import functools
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lvlm_guard.call.asking import build_asked_call
from lvlm_guard.call.last_reports import find_report, keep_report
from lvlm_guard.call.provenance import describe_origin
from lvlm_guard.call.refusals import ARGUMENTS, MODEL
from lvlm_guard.call.report import Report
from lvlm_guard.call.rules import refuse
from lvlm_guard.call.run import run_call
from lvlm_guard.errors import InputError, ProcessorNeeded
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.forward.interventions.compiled import unwrap_compiled
from lvlm_guard.forward.wrapper import is_decoding
from lvlm_guard.host.plugins import StrategyCalls, is_marked
from lvlm_guard.host.stack import Stack
from lvlm_guard.outputs import sequences
from lvlm_guard.request import conversation
from lvlm_guard.request.recent_pictures import RecentPictures
from lvlm_guard.request.requests import Request, bind_arguments, split_arguments

EXECUTORS = ("auto", "batched", "sequential")
DEFAULT_STACK = "vcd"
STACK_LIKE = (str, Stack, list, tuple, Mapping)
ANSWER_TOKENS = 16
"""Tokens a question about a picture may be answered with."""


class Guard:
    """Run a vision-language model's generate with mitigation strategies; the model itself stays as it is.

    ```python
    guard = Guard(model, processor, stack="vcd")
    output = guard.generate(**inputs, max_new_tokens=64)
    ```

    Args:
        model: Any model whose `generate` is Hugging Face's.
        processor: Its processor; needed by `inputs`, `chat`, and strategies that write text or edit pictures.
        stack: What `Stack.of` takes: a name, a list, a mapping, or the path of a TOML or YAML file.
        executor: `auto` decodes branches as one batch where that is exact; `batched` and `sequential` insist.

    Raises:
        StackError: The stack cannot be built.
        InputError: An unknown executor, or a processor that cannot be called.
        ModelRefused: The model cannot generate.
    """

    def __init__(
        self, model: Any, processor: Any = None, stack: Any = DEFAULT_STACK, *, executor: ExecutorName = "auto"
    ) -> None:
        model = unwrap_compiled(model)
        refuse(MODEL, model)
        if executor not in EXECUTORS:
            raise InputError(f"executor must be one of {', '.join(EXECUTORS)}, got {executor!r}.")
        if processor is not None and not callable(processor):
            hint = " Name the stack: Guard(model, stack=...)." if isinstance(processor, STACK_LIKE) else ""
            raise InputError(f"The second argument is the model's processor, got {type(processor).__name__}.{hint}")
        self.model = model
        self.processor = processor
        self.stack = Stack.of(stack)
        self.executor: ExecutorName = executor
        self._strategies = StrategyCalls(self.stack.strategies)
        self._recent_pictures = RecentPictures()

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        return Guard(copy.deepcopy(self.model, memo), self.processor, self.stack, executor=self.executor)

    @property
    def report(self) -> Report:
        """What the last guarded call of this thread or task did.

        Raises:
            InputError: No guarded call has finished in this context.
        """
        report = find_report(self)
        if report is None:
            raise InputError("No guarded call has finished in this thread yet, so there is no report.")
        return report

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the stack; arguments and return value are those of `model.generate`.

        Raises:
            Refused: A mode or model that cannot be guarded exactly; the message names the fix.
            InputError: Arguments that cannot be used.
            NonFiniteLogits: The model or a branch produced NaN.
        """
        return self._generate(self._plain_generate(), args, kwargs)

    def generate_with_report(self, *args: Any, **kwargs: Any) -> tuple[Any, Report | None]:
        """Generate as `generate` does, and return the output and the report of this call.

        For threads, executors and `asyncio.to_thread`: `report` is that of the context in which the call ran. The
        report is None where an empty stack returned something without sequences.
        """
        output = self.generate(*args, **kwargs)
        return output, find_report(self)

    def inputs(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        messages: Sequence[Any] | None = None,
        **options: Any,
    ) -> Any:
        """Turn pictures and text, or chat messages, into model inputs, and remember the pictures.

        Args:
            images: A picture (PIL, path or array) or a list of them, in the order of the prompts.
            text: A prompt, or a list of prompts, with the model's own image placeholder in it.
            messages: One conversation, or a list of them, for the processor's chat template.
            **options: Passed on to the processor.

        Returns:
            The processor's batch on the model's device, floats in the model's dtype.

        Raises:
            ProcessorNeeded: The guard has no processor.
            InputError: Neither or both of text and messages, or a picture that cannot be read.
        """
        return conversation.prepare_inputs(
            self.model, self.processor, self._recent_pictures, images, text, messages, options
        )

    def chat(self, messages: Sequence[Any], images: Any = None, **kwargs: Any) -> Any:
        """Answer one conversation (text) or a list of them (list of texts).

        Args:
            messages: Messages as chat templates take them; pictures may stand in them.
            images: Pictures for image items that carry none.
            **kwargs: Passed on to generate.
        """
        batch = self.inputs(images=images, messages=messages)
        output = self.generate(**batch, **kwargs)
        return conversation.decode_answers(self.processor, batch, output, many=conversation.is_batch(messages))

    @contextmanager
    def attached(self) -> Iterator[Guard]:
        """Guard every call of `model.generate` until the end of the block, whoever makes it and in any thread."""
        model = self.model
        previous = vars(model).get("generate")
        plain = self._plain_generate()

        def generate(_: Any, *args: Any, **kwargs: Any) -> Any:
            return plain(*args, **kwargs) if is_decoding() else self._generate(plain, args, kwargs)

        generate.__wrapped__ = type(model).generate  # type: ignore[attr-defined]
        generate.is_guarded = True  # type: ignore[attr-defined]
        model.generate = types.MethodType(generate, model)
        try:
            yield self
        finally:
            if previous is None:
                del model.generate
            else:
                model.generate = previous

    def _plain_generate(self) -> Any:
        """The model's own generate, also while a guard is attached to it."""
        attached = vars(self.model).get("generate")
        if attached is None or hasattr(getattr(attached, "__func__", None), "is_guarded"):
            return types.MethodType(type(self.model).generate, self.model)
        return attached

    def _generate(self, plain: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one guarded call of the model's own generate."""
        keep_report(self, None)
        arguments = bind_arguments(plain, args, kwargs)
        if not len(self.stack):
            return self._generate_unguarded(plain, arguments)
        refuse(ARGUMENTS, arguments)
        request = self._build_request(arguments)
        ask = functools.partial(self._ask_about_picture, request)
        output, report = run_call(build_asked_call(plain, request, self._strategies, self.executor, ask))
        keep_report(self, report)
        return output

    def _build_request(self, arguments: Mapping[str, Any]) -> Request:
        inputs, settings = split_arguments(arguments)
        pictures = self._recent_pictures.find(inputs)
        defaults = getattr(self.model, "generation_config", None)
        return Request(inputs, settings, self.model.config, self.processor, pictures, defaults)

    def _ask_about_picture(self, request: Request, questions: Sequence[str], row: int) -> list[str]:
        """Return answers about the picture of one request, by the stack without searches and revisions."""
        pictures = request.pictures.pictures if request.pictures is not None else ()
        if len(pictures) != request.input_ids.shape[0]:
            raise ProcessorNeeded("Asking about the picture needs it: make the inputs with guard.inputs or guard.chat.")
        strategies = [strategy for strategy in self.stack if not _takes_over(strategy)]
        guard = Guard(self.model, self.processor, strategies, executor=self.executor)
        conversations = [[conversation.write_question(text, pictures[row])] for text in questions]
        if not conversations:
            return []
        answers: list[str] = guard.chat(conversations, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        return answers

    def _generate_unguarded(self, plain: Any, arguments: Mapping[str, Any]) -> Any:
        """Run plain generate, and report that it ran."""
        started = time.perf_counter()
        output = plain(**arguments)
        ids = split_arguments(arguments)[0].get("input_ids")
        if isinstance(output, Tensor) or hasattr(output, "sequences"):
            seconds, origin = time.perf_counter() - started, describe_origin(self.model.config)
            keep_report(self, Report.of_plain(sequences(output), ids, seconds, origin))
        return output


def _takes_over(strategy: object) -> bool:
    """Return whether a strategy edits main's inputs, searches, or revises answers."""
    return any(is_marked(getattr(strategy, hook, None)) for hook in ("search", "finish", "edit_inputs"))
