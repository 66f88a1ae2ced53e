"""The public door: a guard round one model."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.call.answered import AnsweredPrompts
from lvlm_guard.call.asking import build_asked_call
from lvlm_guard.call.attachments import attached, plain_generate, run_guarded_call
from lvlm_guard.call.last_reports import find_report, keep_report
from lvlm_guard.call.looks.look import Look, LookingGuard
from lvlm_guard.call.looks.opening import open_subject
from lvlm_guard.call.looks.pictures import ask_about_picture
from lvlm_guard.call.looks.talking import Conversation
from lvlm_guard.call.plain import find_start, run_plain
from lvlm_guard.call.refusals import APART, ARGUMENTS, LOOP, MODEL
from lvlm_guard.call.report import Report
from lvlm_guard.call.rules import refuse
from lvlm_guard.call.run import run_call
from lvlm_guard.call.without_image import join_rows, place_requests, split_rows
from lvlm_guard.errors import InputError, ProcessorNeeded, quote
from lvlm_guard.forward.copies import prepare_for_pickle
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.forward.interventions.compiled import unwrap_compiled
from lvlm_guard.host.plugins import StrategyCalls, is_marked
from lvlm_guard.host.stack import Stack
from lvlm_guard.request import conversation
from lvlm_guard.request.messages import is_batch
from lvlm_guard.request.picture_sources import LOCAL_ONLY, PictureSources
from lvlm_guard.request.recent_pictures import RECENT_PICTURES
from lvlm_guard.request.requests import Request, bind_arguments, runs_in_step, split_arguments
from lvlm_guard.request.row_images import rows_with_image
from lvlm_guard.request.row_pictures import find_picture, know_pictures
from lvlm_guard.strategy.names import describe_strategy

WithoutImage = Literal["refuse", "plain"]
"""What is done with rows without an image: refused by strategies that need one, or run as plain generate does."""
EXECUTORS = ("auto", "batched", "sequential")
DEFAULT_STACK = "vcd"
STACK_LIKE = (str, Stack, list, tuple, Mapping)


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
        without_image: What is done with rows whose prompt holds no image: `refuse` leaves it to the strategies, which refuse
            what needs one; `plain` runs those rows as plain generate does.
        pictures: Where `inputs` and `chat` may read pictures from that a text names: by default local paths, no URLs.

    Raises:
        StackError: The stack cannot be built.
        InputError: An unknown executor or `without_image`, `pictures` of another type, or a processor that cannot be called.
        ModelRefused: The model cannot generate.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        stack: Any = DEFAULT_STACK,
        *,
        executor: ExecutorName = "auto",
        without_image: WithoutImage = "refuse",
        pictures: PictureSources = LOCAL_ONLY,
    ) -> None:
        model = unwrap_compiled(model)
        refuse(MODEL, model)
        if not isinstance(executor, str) or executor not in EXECUTORS:
            raise InputError(f"executor must be one of {', '.join(EXECUTORS)}, got {quote(executor)}.")
        if not isinstance(without_image, str) or without_image not in get_args(WithoutImage):
            raise InputError(f"without_image must be 'refuse' or 'plain', got {quote(without_image)}.")
        if processor is not None and not callable(processor):
            hint = " Name the stack: Guard(model, stack=...)." if isinstance(processor, STACK_LIKE) else ""
            raise InputError(f"The second argument is the model's processor, got {type(processor).__name__}.{hint}")
        if not isinstance(pictures, PictureSources):
            raise InputError(f"pictures is lvlm_guard.PictureSources(...), got {quote(pictures)}.")
        self.model = model
        self.processor = processor
        self.executor: ExecutorName = executor
        self.without_image: WithoutImage = without_image
        self.stack = stack
        self.pictures = pictures
        self._recent_pictures = RECENT_PICTURES

    @property
    def stack(self) -> Stack:
        """The strategies; takes what `Stack.of` takes, for the calls that follow."""
        return self._stack

    @stack.setter
    def stack(self, stack: Any) -> None:
        self._stack = Stack.of(stack)
        vars(self).pop("_strategies", None)

    @functools.cached_property
    def _strategies(self) -> StrategyCalls:
        """The strategies and their hooks; a sibling looks for them in its first call."""
        return StrategyCalls(self.stack.strategies)

    def __copy__(self) -> Guard:
        return self.using(self.stack)

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        return _rebuild(type(self), copy.deepcopy(self.model, memo), self.processor, self.stack, self._options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), prepare_for_pickle(self.model), self.processor, self.stack, self._options)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self._options.items() if value != DEFAULTS[name])
        strategies = ", ".join(describe_strategy(strategy) for strategy in self.stack)
        return f"Guard({type(self.model).__name__}, stack=[{strategies}]{options})"

    @property
    def _options(self) -> dict[str, Any]:
        """The keyword arguments of a guard like this one."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def using(self, stack: Any) -> Guard:
        """Return a guard on the same model with another stack; None is plain generate.

        Model, processor, settings and remembered pictures are shared, the report is its own. Nothing is loaded or checked
        again but the stack, so it costs microseconds with strategies that are already built.

        Raises:
            StackError: The stack cannot be built.
        """
        sibling = object.__new__(type(self))
        vars(sibling).update(vars(self))
        sibling.stack = stack
        return sibling

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

        `stack=` as a further argument uses another stack for this call, as `using` does; None is plain generate.

        Raises:
            Refused: A mode or model that cannot be guarded exactly; the message names the fix.
            InputError: Arguments that cannot be used.
            NonFiniteLogits: The model or a branch produced NaN.
        """
        return self._generate(plain_generate(self.model), args, kwargs)

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
            images: A picture or a list of them, in the order of the prompts: PIL, path, URL, data URI, base64, array or tensor.
                With messages, those of image items that hold none.
            text: A prompt, or a list of prompts, with the model's own image placeholder in it.
            messages: One conversation, or a list of them, for the processor's chat template, as transformers and OpenAI
                write them.
            **options: Passed on to the processor.

        Returns:
            The processor's batch on the model's device, floats in the model's dtype.

        Raises:
            ProcessorNeeded: The guard has no processor.
            InputError: Neither or both of text and messages, a picture or message that cannot be read, more or fewer pictures
                than places for them, or what the processor refuses.
        """
        return conversation.prepare_inputs(
            self.model, self.processor, self._recent_pictures, images, text, messages, options, self.pictures
        )

    def chat(
        self, messages: Sequence[Any], images: Any = None, *, cache: Conversation | None = None, **kwargs: Any
    ) -> Any:
        """Answer one conversation (text) or a list of them (list of texts).

        Args:
            messages: Messages as chat templates take them; pictures may stand in them.
            images: Pictures for image items that carry none.
            cache: A conversation of `Guard.conversation`, which runs only what is new in its next turn.
            **kwargs: Passed on to generate, `stack=` for this call alone included.
        """
        if cache is not None:
            return self._chat_on(cache, messages, images, kwargs)
        batch = self.inputs(images=images, messages=messages)
        output, report = self.generate_with_report(**batch, **kwargs)
        return conversation.decode_answers(self.processor, output, find_start(output, report), many=is_batch(messages))

    @contextmanager
    def looking(self, subject: Any, images: Any = None, **options: Any) -> Iterator[Look]:
        """Look at pictures once and ask about them often: what comes before the questions runs once, for main and branches.

        ```python
        with guard.looking(picture) as look:
            answers = look.ask(["Is there a dog?", "Is there a cat?"], max_new_tokens=1)
        ```

        Args:
            subject: A picture, a list of pictures, messages with pictures in them, or model inputs of one prompt.
            images: Pictures for image items of messages that carry none.
            **options: Passed on to the processor.

        Raises:
            InputError: What is passed is none of these, or nothing of it comes before the questions.
            ProcessorNeeded: The guard has no processor.
        """
        opened = open_subject(self, self._build_request, subject, images, options)
        look = Look(opened, self._looking)
        try:
            yield look
        finally:
            look.close()

    def _chat_on(self, cache: Any, messages: Sequence[Any], images: Any, settings: Mapping[str, Any]) -> str:
        if not isinstance(cache, Conversation) or cache.guard is not self:
            raise InputError(f"cache is a conversation of this guard, guard.conversation(), got {quote(cache)}.")
        return cache.chat(messages, images, **settings)

    def conversation(self) -> Conversation:
        """Return a conversation whose next turn runs only what is new; `chat(messages, cache=conversation)` takes it too.

        ```python
        talk = guard.conversation()
        messages.append({"role": "assistant", "content": talk.chat(messages)})
        ```
        """
        return Conversation(self._looking)

    @property
    def _looking(self) -> LookingGuard:
        """What looks and conversations use of this guard."""
        return LookingGuard(
            self.model,
            self.executor,
            self,
            lambda: self.stack,
            lambda: self._strategies,
            self._build_request,
            self._ask_about_picture,
        )

    def diagnose(self, images: Any, prompt: str, **settings: Any) -> Any:
        """Say which words of an answer can be trusted: `lvlm_guard.diagnosis.diagnose_answer`, whose arguments it takes.

        ```python
        print([word.text for word in guard.diagnose("kitchen.png", "Describe this image.").doubtful])
        ```
        """
        return _open(DIAGNOSIS).diagnose_answer(self, images, prompt, **settings)

    def diagnose_model(self, items: Sequence[Any], **settings: Any) -> Any:
        """Say what is wrong with the model itself, whatever the stack: `lvlm_guard.diagnosis.diagnose_model`, whose arguments it takes.

        Raises:
            ProcessorNeeded: The guard has no processor.
        """
        if self.processor is None:
            raise ProcessorNeeded("diagnose_model needs the processor: Guard(model, processor).")
        return _open(DIAGNOSIS).diagnose_model(self.model, self.processor, items, **settings)

    @contextmanager
    def attached(self) -> Iterator[Guard]:
        """Guard every call of `model.generate` until the end of the block, whoever makes it and in any thread.

        Where several guards are attached to one model, the youngest that still stands answers, alone; blocks may overlap, in
        threads too, and end in any order. `guard.generate` answers with its own stack, whatever is attached. A copy of the
        model is not guarded.
        """
        with attached(self.model, self._generate):
            yield self

    def _generate(self, plain: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one call of the model's own generate with this stack, or with that of the call."""
        keep_report(self, None)
        chosen = self.using(kwargs["stack"]) if "stack" in kwargs else self
        arguments = bind_arguments(plain, args, {name: value for name, value in kwargs.items() if name != "stack"})
        output, report = run_guarded_call(self.model, chosen._run, plain, arguments)  # noqa: SLF001 - a guard like this one
        keep_report(self, report)
        return output

    def _run(self, plain: Any, arguments: Mapping[str, Any]) -> tuple[Any, Report | None]:
        """Return the output and the report of one call, guarded where there is something to guard."""
        if not len(self.stack):
            return run_plain(self.model, plain, arguments)
        refuse(ARGUMENTS, arguments)
        request = self._build_request(arguments)
        refuse(LOOP, request)
        if self.without_image == "plain":
            refuse(APART, request)
        if self.without_image == "plain" and not bool((rows := rows_with_image(request)).all()):
            return (
                self._run_beside_plain(plain, arguments, request, rows)
                if rows.any()
                else run_plain(self.model, plain, arguments)
            )
        ask = functools.partial(self._ask_about_picture, request)
        return run_call(build_asked_call(self.model, plain, request, self._strategies, self.executor, ask))

    def _run_beside_plain(
        self, plain: Any, arguments: Mapping[str, Any], request: Request, rows: Tensor
    ) -> tuple[Any, Report | None]:
        """Run the rows with an image, bool `[batch]`, guarded and the others plain; the report is about the former."""
        settings = {name: value for name, value in request.settings.items() if name in arguments}
        guarded_inputs, plain_inputs = split_rows(request, rows)
        guarded, report = self._run(plain, {**guarded_inputs, **settings})
        joined = join_rows([guarded, plain(**plain_inputs, **settings)], rows, request)
        return joined, None if report is None else place_requests(report, rows)

    def _build_request(self, arguments: Mapping[str, Any]) -> Request:
        main_input = anatomy.main_input(self.model)
        inputs, settings = split_arguments(arguments, main_input)
        if settings.get("synced_gpus") is None and runs_in_step(self.model):
            settings["synced_gpus"] = True
        pictures = self._recent_pictures.find(inputs)
        defaults = getattr(self.model, "generation_config", None)
        return Request(inputs, settings, self.model.config, self.processor, pictures, defaults, main_input)

    def _ask_about_picture(
        self,
        request: Request,
        questions: Sequence[str],
        row: int,
        answered: AnsweredPrompts,
        read: Literal["answers", "first_logits"] = "answers",
    ) -> Any:
        """Return answers about the picture of one request, or logits, by the stack without searches and revisions."""
        index = find_picture(request, row)
        pictures = know_pictures(request)
        strategies = [strategy for strategy in self.stack if not _takes_over(strategy)]
        guard = Guard(self.model, self.processor, strategies, executor=self.executor)
        picture, options = pictures.pictures[index], pictures.options[index]
        return ask_about_picture(guard._looking, questions, picture, options, answered, row, read)


DEFAULTS = {"executor": "auto", "without_image": "refuse", "pictures": LOCAL_ONLY}
"""Keyword arguments of a guard, as they are when nobody sets them."""


DIAGNOSIS = "lvlm_guard.diagnosis"
"""A room that is built on guards, and opened only when one is asked for what it does."""


def _open(room: str) -> Any:
    return importlib.import_module(room)


def _rebuild(kind: type[Guard], model: Any, processor: Any, stack: Stack, options: Mapping[str, Any]) -> Guard:
    return kind(model, processor, stack, **options)


def _takes_over(strategy: object) -> bool:
    """Return whether a strategy edits main's inputs, searches, or revises answers."""
    return any(is_marked(getattr(strategy, hook, None)) for hook in ("search", "finish", "edit_inputs"))
