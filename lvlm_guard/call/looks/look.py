"""A look at pictures: many prompts that begin with them, and their beginning run once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.call.answered import AnsweredPrompts
from lvlm_guard.call.answers import restore_prompt
from lvlm_guard.call.asking import AskedCall, build_asked_call
from lvlm_guard.call.attachments import plain_generate, run_guarded_call
from lvlm_guard.call.last_reports import keep_report
from lvlm_guard.call.looks.memory import PrefixMemory
from lvlm_guard.call.looks.opening import InputMaker, LookSubject
from lvlm_guard.call.looks.parts import (
    group_rows,
    join_outputs,
    join_reports,
    repeat_inputs,
    repeat_pictures,
    select_rows,
)
from lvlm_guard.call.looks.preparation import LookPreparation
from lvlm_guard.call.looks.refusals import LOOK, LOOK_GROUPS, READS_PADDING, READS_PROMPT, find_setting
from lvlm_guard.call.looks.rows import continue_all, lay_out_behind, list_prompts
from lvlm_guard.call.looks.sharing import RaggedRows, describe_whole, share_prefixes
from lvlm_guard.call.looks.unedited import compute_states
from lvlm_guard.call.plain import FIRST_LOGITS
from lvlm_guard.call.prompt_preparation import PromptPreparation
from lvlm_guard.call.refusals import ARGUMENTS, LOOP
from lvlm_guard.call.report import Report
from lvlm_guard.call.rules import refuse
from lvlm_guard.call.run import run_call
from lvlm_guard.errors import InputError, quote
from lvlm_guard.forward.executors.executor import ExecutorName
from lvlm_guard.forward.prefixes import describe_state
from lvlm_guard.host.plugins import StrategyCalls
from lvlm_guard.host.stack import Stack
from lvlm_guard.request import conversation
from lvlm_guard.request.branch_inputs import lengthen_limits
from lvlm_guard.request.messages import is_batch
from lvlm_guard.request.requests import Request, bind_arguments
from lvlm_guard.strategy.branches import MAIN

BuildRequest: TypeAlias = Callable[[Mapping[str, Any]], Request]
OTHER_LAYOUT = "the call's {} reads prompts, which stand otherwise behind a look"


@dataclass(frozen=True, eq=False)
class LookingGuard:
    """What a look uses of its guard.

    Args:
        model: The model.
        executor: The executor asked for.
        maker: Makes model inputs: the guard itself, whose reports are those of its looks.
        find_stack: Returns its stack.
        find_strategies: Returns its strategies.
        build_request: Returns the request of the arguments of generate.
        ask: Asks it about the picture of a row of a request, as revisions do.
    """

    model: Any
    executor: ExecutorName
    maker: InputMaker
    find_stack: Callable[[], Stack]
    find_strategies: Callable[[], StrategyCalls]
    build_request: BuildRequest
    ask: Callable[..., Any]


class Look:
    """Prompts that begin with the same pictures, which run once: made by `Guard.looking`.

    What comes before the question, pictures and all, runs once for main and for each branch; every question goes on from
    copies of their caches. Answers are those of `guard.generate` on whole prompts, to rounding. Threads may share a look.

    Args:
        subject: What the look is at.
        guard: What it uses of the guard.
        advances: Whether its prompts are the turns of one conversation, each of which begins with the turns before it.
        answered: The prompt of an answered call that it takes over, if any.
    """

    def __init__(self, subject: Any, guard: Any, *, advances: bool = False, answered: Any = None) -> None:
        looking: LookingGuard = guard
        self._guard = looking
        self._subject: LookSubject = subject
        self._memory = PrefixMemory(self._subject.opening, answered)
        self._stack = looking.find_stack()
        self._is_open = True
        self._share = functools.partial(share_prefixes, memory=self._memory, advances=advances)

    def ask(self, questions: str | Sequence[str], **kwargs: Any) -> Any:
        """Answer a question (text) or several (list of texts), each by itself.

        Args:
            questions: Texts, put behind the pictures and messages of the look.
            **kwargs: Passed on to generate.

        Raises:
            InputError: The look is closed, was opened with model inputs, or does not hold any more: pictures, stack, weights, adapters,
                dtype, device or attention were changed.
            Refused: As `Guard.generate`; a search, or a model that cannot go on from a look exactly.
        """
        texts = _list_texts(questions)
        answers = self._answer([self._subject.ask(text) for text in texts], kwargs) if texts else []
        return answers[0] if isinstance(questions, str) else answers

    def first_logits(self, questions: Sequence[str]) -> Tensor:
        """Return the guarded logits of the first token of each answer `[questions, vocab]`, in fp32, before generate's processors.

        Raises:
            InputError: As `ask`.
            Refused: As `ask`; or the questions differ in length and would run in groups on this model.
        """
        conversations = [self._subject.ask(text) for text in _list_texts(questions)]
        logits: Tensor = self._run_conversations(conversations, FIRST_LOGITS).logits[0].float()
        return logits

    def inputs(self, questions: Sequence[str]) -> Any:
        """Return model inputs of questions, for `generate`, padded on the left.

        Raises:
            InputError: As `ask`.
        """
        return self._write([self._subject.ask(text) for text in _list_texts(questions)])

    def chat(self, messages: Sequence[Any], **kwargs: Any) -> Any:
        """Answer the messages of the look and further ones (text), or each of a list of such conversations (list of texts).

        Args:
            messages: Messages behind those of the look, without pictures.
            **kwargs: Passed on to generate.
        """
        batch = list(messages) if is_batch(messages) else [messages]
        answers = self._answer([self._subject.write(each) for each in batch], kwargs)
        return answers if is_batch(messages) else answers[0]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as `Guard.generate` does, from prompts that begin with the pictures of the look, `guard.inputs` or like it.

        Raises:
            InputError: As `ask`, and prompts or pictures that are not those of the look.
        """
        if "stack" in kwargs:
            raise InputError("A look is of one stack: open another look with guard.using(stack).looking(...).")
        return self._generate(self._guard.build_request, args, kwargs)

    def fits(self, inputs: Mapping[str, Any]) -> bool:
        """Return whether prompts go on from this look, and it still holds."""
        try:
            self._check()
            request = self._guard.build_request(dict(inputs))
            self._check_pictures(request, len(self._read_lengths(request)))
        except InputError:
            return False
        return True

    def close(self) -> None:
        """Let go of all that was run; `Guard.looking` does so at the end of its block."""
        self._is_open = False
        self._memory.clear()

    def _answer(self, conversations: list[Any], settings: Mapping[str, Any]) -> list[str]:
        output, processor = self._run_conversations(conversations, settings), self._guard.maker.processor
        start = self._guard.maker.report.answer_start
        answers: list[str] = conversation.decode_answers(processor, output, start, many=True)
        return answers

    def _run_conversations(self, conversations: list[Any], settings: Mapping[str, Any]) -> Any:
        batch = self._write(conversations)
        if self._subject.writer is None:
            return self.generate(**batch, **settings)
        return self._generate(self._build_own_request, (), {**batch, **settings})

    def _write(self, conversations: list[Any]) -> Any:
        """Return model inputs of conversations, made of words alone where that gives the same.

        Raises:
            InputError: The look is closed, or there is no conversation.
        """
        self._check_open()
        if not conversations:
            raise InputError("There is no question: give at least one.")
        if self._subject.writer is not None:
            return self._subject.writer.write(conversations)
        images = [picture for _ in conversations for picture in self._subject.pictures]
        return self._guard.maker.inputs(images=images or None, messages=conversations, **self._subject.options)

    def _build_own_request(self, arguments: Mapping[str, Any]) -> Request:
        """Return the request of prompts that the look wrote itself, with its own pictures."""
        without_pictures = {name: value for name, value in arguments.items() if not _is_of_pictures(name)}
        request = self._guard.build_request(without_pictures)
        of_pictures = {name: value for name, value in arguments.items() if _is_of_pictures(name)}
        pictures = repeat_pictures(self._memory.opening.pictures, len(request.input_ids))
        return dataclasses.replace(request, inputs={**request.inputs, **of_pictures}, pictures=pictures)

    def _generate(self, build: BuildRequest, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if "stack" in kwargs:
            raise InputError("A look is of one stack: open another look with guard.using(stack).looking(...).")
        guard = self._guard
        keep_report(guard.maker, None)
        plain = plain_generate(guard.model)
        arguments = bind_arguments(plain, args, kwargs)
        output, report = run_guarded_call(guard.model, self._run, plain, arguments, build)
        keep_report(guard.maker, report)
        return output

    def _run(self, plain: Any, arguments: Mapping[str, Any], build: BuildRequest) -> tuple[Any, Report]:
        """Return the output and the report of one call."""
        self._check()
        refuse(ARGUMENTS, arguments)
        request = build(arguments)
        refuse(LOOP, request)
        refuse(LOOK, request)
        lengths = self._read_lengths(request)
        if build == self._guard.build_request:
            self._check_pictures(request, len(lengths))
        if (reader := find_setting(request, READS_PROMPT)) and set(lengths) != {request.input_ids.shape[1]}:
            return self._run_whole(plain, request, RaggedRows({MAIN: OTHER_LAYOUT.format(reader)}))
        if len(set(lengths)) == 1:
            return self._run_laid_out(plain, request)
        try:
            if find_setting(request, READS_PADDING):
                return self._run_groups(plain, request, lengths)
            return self._run_laid_out(plain, request)
        except RaggedRows as ragged:
            if ragged.main_runs_whole:
                return self._run_whole(plain, request, ragged)
            return self._run_groups(plain, request, lengths)

    def _check(self) -> None:
        """Check that what was run still holds.

        Raises:
            InputError: It does not.
        """
        self._check_open()
        if self._guard.find_stack() != self._stack:
            raise InputError("The guard's stack was changed while it looked: open another look, guard.looking(...).")
        state = describe_state(self._guard.model)
        if self._memory.state in (None, state):
            self._memory.state = state
        else:
            raise InputError(
                "The model was changed while the guard looked (weights, adapters, dtype, autocast, device, mode or attention), so what "
                "was run does not hold any more: open another look, guard.looking(...)."
            )

    def _check_open(self) -> None:
        if not self._is_open:
            raise InputError("This look is closed: open another with guard.looking(...).")

    def _read_lengths(self, request: Request) -> list[int]:
        """Return how many tokens each row has.

        Raises:
            InputError: Rows that do not go on from the look, or with other pictures.
        """
        opening = self._memory.opening
        rows = list_prompts(request)
        token = anatomy.image_token_id(request.config)
        if any(token in row[len(opening.ids) :] for row in rows if token is not None):
            raise InputError(
                "A question holds an image token, but a look has its pictures from the start: open another look."
            )
        if any(tuple(row) == opening.ids for row in rows):
            raise InputError("A prompt ends where this look does, but has to go on from it: put a question behind it.")
        if not continue_all(rows, opening.ids):
            raise InputError(
                "A prompt does not go on from what this look was opened with: begin it with the same messages, as look.ask and "
                "look.chat do, or open another look."
            )
        return [len(row) for row in rows]

    def _check_pictures(self, request: Request, rows: int) -> None:
        expected = repeat_inputs(self._memory.opening.inputs, rows)
        names = {name for inputs in (expected, request.inputs) for name in inputs if _is_of_pictures(name)}
        for name in names:
            if not _is_same(request.inputs.get(name), expected.get(name)):
                raise InputError(
                    f"The prompts come with other pictures than this look ({name} differs): open another look."
                )

    def _build_call(
        self, plain: Any, request: Request, preparation: Callable[..., PromptPreparation] | None = None
    ) -> AskedCall:
        def ask(questions: Sequence[str], row: int, answered: AnsweredPrompts, **options: Any) -> Any:
            return self._guard.ask(request, questions, row, answered, **options)

        strategies = self._guard.find_strategies()
        if preparation is None:
            edits = bool(strategies.active("edit_inputs"))
            unedited = None if edits else functools.partial(compute_states, self._memory)
            preparation = functools.partial(LookPreparation, compute_unedited=unedited)
        return build_asked_call(self._guard.model, plain, request, strategies, self._guard.executor, ask, preparation)

    def _run_laid_out(self, plain: Any, request: Request) -> tuple[Any, Report]:
        """Run the rows in one batch, behind the look."""
        inputs = {**request.inputs, "attention_mask": request.attention_mask}
        inputs |= lay_out_behind(inputs, len(self._memory.opening.ids))
        laid_out = dataclasses.replace(
            request, inputs=inputs, settings=_keep_limits(request, inputs["input_ids"].shape[1])
        )
        output, report = run_call(self._build_call(plain, laid_out), self._share)
        if not report.answer_start:
            return output, report
        output = restore_prompt(output, report.answer_start, request.input_ids)
        return output, dataclasses.replace(report, answer_start=request.input_ids.shape[1])

    def _run_whole(self, plain: Any, request: Request, ragged: RaggedRows) -> tuple[Any, Report]:
        """Run whole prompts where main cannot go on from the look."""
        output, report = run_call(self._build_call(plain, request, PromptPreparation))
        return output, dataclasses.replace(report, prompts=describe_whole(ragged.reasons))

    def _run_groups(self, plain: Any, request: Request, lengths: Sequence[int]) -> tuple[Tensor, Report]:
        """Run rows of one length after the other."""
        refuse(LOOK_GROUPS, request)
        groups = group_rows(lengths)
        settings = [_keep_limits(request, lengths[rows[0]]) for rows in groups]
        pairs = zip(groups, settings, strict=True)
        parts = [select_rows(request, self._memory.opening, rows, of_group) for rows, of_group in pairs]
        runs = [run_call(self._build_call(plain, part), self._share) for part in parts]
        tokens = [output[:, report.answer_start :] for output, report in runs]
        output = join_outputs(tokens, groups, request.input_ids, find_padding(request))
        report = join_reports([report for _, report in runs], groups)
        return output, dataclasses.replace(report, answer_start=request.input_ids.shape[1])


def _list_texts(questions: Any) -> list[str]:
    """Return questions as a list.

    Raises:
        InputError: They are neither a text nor a list.
    """
    if isinstance(questions, str):
        return [questions]
    if not isinstance(questions, (list, tuple)):
        raise InputError(f"A look takes a question or a list of questions, got {quote(questions)}.")
    return list(questions)


def _keep_limits(request: Request, length: int) -> dict[str, Any]:
    """Return settings that limit answers behind prompts of another length, padding included, as those of a request are limited."""
    return lengthen_limits(request, length - request.input_ids.shape[1])


def find_padding(request: Request) -> int:
    """Return the token that generate pads finished rows with."""
    token = request.setting("pad_token_id")
    token = request.setting("eos_token_id") if token is None else token
    token = token[0] if isinstance(token, (list, tuple)) else token
    return 0 if token is None else int(token)


def _is_of_pictures(name: str) -> bool:
    return anatomy.is_image_input(name) and name != "cross_attention_mask"


def _is_same(value: Any, expected: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(expected, Tensor):
        return value.shape == expected.shape and torch.equal(value, expected.to(value.device, value.dtype))
    return not isinstance(value, Tensor) and not isinstance(expected, Tensor) and value == expected
