"""The public door: a guard round one model."""

from __future__ import annotations

import copy
import functools
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from lvlm_guard.call.report import Report
from lvlm_guard.call.session import Session
from lvlm_guard.errors import InputError, ModelRefused, ModeRefused, ProcessorNeeded
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.forward.interventions.compiled import unwrap_compiled
from lvlm_guard.forward.wrapper import is_decoding
from lvlm_guard.host.plugins import StrategyCalls, is_marked
from lvlm_guard.host.stack import Stack
from lvlm_guard.outputs import sequences
from lvlm_guard.request import conversation, requests
from lvlm_guard.request.requests import Request

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
        InputError: An executor that there is not, or a processor that cannot be called.
        ModelRefused: The model cannot generate.
    """

    def __init__(
        self, model: Any, processor: Any = None, stack: Any = DEFAULT_STACK, *, executor: ExecutorName = "auto"
    ) -> None:
        model = unwrap_compiled(model)
        if not callable(getattr(model, "generate", None)) or not _can_generate(model):
            raise ModelRefused(f"{type(model).__name__} has no autoregressive generate, so there is nothing to guard.")
        if executor not in EXECUTORS:
            raise InputError(f"executor must be one of {', '.join(EXECUTORS)}, got {executor!r}.")
        if processor is not None and not callable(processor):
            hint = " Name the stack: Guard(model, stack=...)." if isinstance(processor, STACK_LIKE) else ""
            raise InputError(f"The second argument is the model's processor, got {type(processor).__name__}.{hint}")
        self.model = model
        self.processor = processor
        self.stack = Stack.of(stack)
        self.executor: ExecutorName = executor
        self._calls = StrategyCalls(self.stack.strategies)
        self._memory = conversation.PictureMemory()
        self._last: ContextVar[Report | None] = ContextVar("lvlm_guard_report", default=None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        return Guard(copy.deepcopy(self.model, memo), self.processor, self.stack, executor=self.executor)

    @property
    def report(self) -> Report:
        """What the last guarded call of this thread or task did.

        Raises:
            InputError: No guarded call has finished in this context.
        """
        report = self._last.get()
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
        return self._generate(self._plain(), args, kwargs)

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
        return conversation.prepare(self.model, self.processor, self._memory, images, text, messages, options)

    def chat(self, messages: Sequence[Any], images: Any = None, **kwargs: Any) -> Any:
        """Answer one conversation (text) or a list of them (list of texts).

        Args:
            messages: Messages as chat templates take them; pictures may stand in them.
            images: Pictures for image items that carry none.
            **kwargs: Passed on to generate.
        """
        batch = self.inputs(images=images, messages=messages)
        sequences = self.generate(**batch, **kwargs)
        return conversation.answers(self.processor, batch, sequences, many=conversation.is_batch(messages))

    @contextmanager
    def attached(self) -> Iterator[Guard]:
        """Guard every call of `model.generate` until the end of the block, whoever makes it and in any thread."""
        model = self.model
        saved = vars(model).get("generate")
        plain = self._plain()

        def generate(_: Any, *args: Any, **kwargs: Any) -> Any:
            return plain(*args, **kwargs) if is_decoding() else self._generate(plain, args, kwargs)

        generate.__wrapped__ = type(model).generate  # type: ignore[attr-defined]
        generate.is_guarded = True  # type: ignore[attr-defined]
        model.generate = types.MethodType(generate, model)
        try:
            yield self
        finally:
            if saved is None:
                del model.generate
            else:
                model.generate = saved

    def _plain(self) -> Any:
        """The model's own generate, also while a guard is attached to it."""
        attached = vars(self.model).get("generate")
        if attached is None or hasattr(getattr(attached, "__func__", None), "is_guarded"):
            return types.MethodType(type(self.model).generate, self.model)
        return attached

    def _generate(self, plain: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self._last.set(None)
        arguments = requests.bind(plain, args, kwargs)
        if not len(self.stack):
            return self._unguarded(plain, arguments)
        _refuse_arguments(arguments)
        inputs, settings = requests.split(arguments)
        pictures = self._memory.find(inputs)
        defaults = getattr(self.model, "generation_config", None)
        request = Request(inputs, settings, self.model.config, self.processor, pictures, defaults)
        ask = functools.partial(self._ask, request)
        output, report = Session(plain, request, self._calls, self.executor, ask).run()
        self._last.set(report)
        return output

    def _ask(self, request: Request, questions: Sequence[str], row: int) -> list[str]:
        """Answers to questions about the picture of one request, by the stack without searches and revisions."""
        pictures = request.pictures.pictures if request.pictures is not None else ()
        if len(pictures) != request.input_ids.shape[0]:
            raise ProcessorNeeded("Asking about the picture needs it: make the inputs with guard.inputs or guard.chat.")
        kept = [one for one in self.stack if not _takes_over(one)]
        asker = Guard(self.model, self.processor, kept, executor=self.executor)
        ask = [[conversation.question(text, pictures[row])] for text in questions]
        found: list[str] = asker.chat(ask, max_new_tokens=ANSWER_TOKENS, do_sample=False) if ask else []
        return found

    def _unguarded(self, plain: Any, arguments: Mapping[str, Any]) -> Any:
        """Plain generate, and a report that says so."""
        started = time.perf_counter()
        output = plain(**arguments)
        ids = requests.split(arguments)[0].get("input_ids")
        if isinstance(output, Tensor) or hasattr(output, "sequences"):
            self._last.set(Report.of_plain(sequences(output), ids, time.perf_counter() - started))
        return output


def _takes_over(strategy: object) -> bool:
    return any(is_marked(getattr(strategy, hook, None)) for hook in ("search", "finish", "edit_inputs"))


def _can_generate(model: Any) -> bool:
    check = getattr(model, "can_generate", None)
    return bool(check()) if callable(check) else True


def _refuse_arguments(arguments: Mapping[str, Any]) -> None:
    if arguments.get("custom_generate") is not None:
        raise ModeRefused("custom_generate replaces the decoding loop, so it cannot be guarded: drop it.")
    if arguments.get("cache_implementation") == "paged":
        raise ModeRefused("Paged and continuous batching bypass generate's loop: drop cache_implementation='paged'.")
    cache = arguments.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ModeRefused(
            "generate() got a cache that already holds tokens; branches have no matching one. "
            "Pass the whole conversation without past_key_values."
        )
