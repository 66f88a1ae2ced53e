"""What a look is opened with: pictures, messages or model inputs, and where the questions go."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from lvlm_guard.call.looks.memory import Opening
from lvlm_guard.call.looks.questions import QuestionWriter, create_writer
from lvlm_guard.call.looks.rows import count_shared, list_prompts, list_rows, take_rows
from lvlm_guard.call.report import Report
from lvlm_guard.errors import InputError, quote
from lvlm_guard.request import prompts
from lvlm_guard.request.messages import Conversation, content_item, is_batch, read_messages
from lvlm_guard.request.requests import Request

TRIAL_QUESTIONS = ("0", "Zebra")
"""Two questions that differ from their first letter on, by which it is seen where questions go."""
JOINT = 2
"""Tokens before a question that may depend on how it begins."""


class InputMaker(Protocol):
    """The part of a guard that looks use."""

    model: Any
    processor: Any

    @property
    def report(self) -> Report:
        """Return what the last call did."""
        ...

    def inputs(self, images: Any = None, text: Any = None, messages: Any = None, **options: Any) -> Any:
        """Return model inputs."""


@dataclass(frozen=True, eq=False)
class LookSubject:
    """What a look is at.

    Args:
        opening: How its prompts begin.
        conversation: The messages before a question, images without their pictures; None where it was opened with model inputs.
        pictures: The pictures, in the order of the messages.
        writer: Writes prompts of words alone, where that was found to give the same.
        options: Passed on to the processor.
    """

    opening: Opening
    conversation: Conversation | None = None
    pictures: Sequence[Any] = ()
    writer: QuestionWriter | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def write(self, messages: Sequence[Any]) -> Conversation:
        """Return the conversation with further messages.

        Raises:
            InputError: The look was opened with model inputs, or the messages hold pictures.
        """
        if self.conversation is None:
            raise InputError(
                "This look was opened with model inputs, so no messages are known: use look.generate(**inputs)."
            )
        read = read_messages(messages)
        if any(read.pictures):
            raise InputError(
                "A question holds a picture, but a look has its pictures from the start: open another look."
            )
        return [*copy.deepcopy(self.conversation), *read.conversations[0]]

    def ask(self, question: str) -> Conversation:
        """Return the conversation with a question: in the user's last message where nobody answered it, else in one of its own.

        Raises:
            InputError: The question is no text.
        """
        if not isinstance(question, str):
            raise InputError(f"A question is a text, got {quote(question)}.")
        if self.conversation and self.conversation[-1]["role"] == "user":
            conversation = self.write([{"role": "user", "content": question}])
            item = conversation.pop()["content"]
            conversation[-1]["content"] = [*conversation[-1]["content"], *item]
            return conversation
        return self.write([{"role": "user", "content": question}])


def open_subject(
    guard: InputMaker,
    build_request: Callable[[Mapping[str, Any]], Request],
    subject: Any,
    images: Any,
    options: Mapping[str, Any],
) -> LookSubject:
    """Return what a look is at.

    Args:
        guard: The guard.
        build_request: Returns the request of model inputs.
        subject: A picture, a list of pictures, messages, or model inputs of one prompt.
        images: Pictures for image items of messages that hold none.
        options: Passed on to the processor.

    Raises:
        InputError: It is none of these, or nothing of it comes before the questions.
        ProcessorNeeded: The guard has no processor.
    """
    if isinstance(subject, Mapping):
        return LookSubject(open_inputs(build_request(dict(subject))))
    read = read_messages(subject if _holds_messages(subject) else _write_message(subject))
    if len(read.conversations) != 1:
        raise InputError("A look is opened with one conversation: open one for each.")
    values = read.place([] if images is None else list(images) if isinstance(images, (list, tuple)) else [images])
    return _open_conversation(guard, build_request, read.conversations[0], values, options)


def open_inputs(request: Request) -> Opening:
    """Return how a prompt begins: up to the end of its last picture, or all but its last token.

    Raises:
        InputError: There are several prompts, or tokens of it are masked between others.
    """
    rows = list_prompts(request)
    if len(rows) != 1:
        raise InputError(f"A look is opened with model inputs of one prompt, got {len(rows)}.")
    if "mm_encoder_outputs" in request.inputs:
        raise InputError("A look is opened with pixels, not with encoded images: pass what the processor returned.")
    spans = prompts.find_spans(request)[0]
    length = spans[-1].stop if spans else len(rows[0]) - 1
    return _build_opening(request, rows[0][:length])


def _open_conversation(
    guard: InputMaker,
    build_request: Callable[[Mapping[str, Any]], Request],
    conversation: Conversation,
    values: Sequence[Any],
    options: Mapping[str, Any],
) -> LookSubject:
    trial = LookSubject(Opening({}, ()), conversation, values)
    trials = [trial.ask(question) for question in TRIAL_QUESTIONS]
    request = build_request(dict(guard.inputs(images=list(values) or None, messages=trials[0], **options)))
    opening = _build_opening(request, ())
    writer = create_writer(guard.processor, opening.inputs, trials[0], TRIAL_QUESTIONS[0], request.config)
    second = (
        guard.inputs(images=list(values) or None, messages=trials[1], **options)
        if writer is None
        else writer.write([trials[1]])
    )
    first_row, second_row = (list_rows(inputs)[0] for inputs in (opening.inputs, second))
    spans = prompts.find_spans(request)[0]
    differ = first_row != second_row  # a tokenizer that knows neither question shows nothing
    length = max(count_shared(first_row, second_row) - JOINT if differ else 0, spans[-1].stop if spans else 0)
    if first_row[:length] != second_row[:length] or not length:
        raise InputError(
            "The chat template writes nothing before a question that is the same for all, so a look is of no use."
        )
    pictures = values if request.pictures is None or request.pictures.missing else request.pictures.pictures
    opening = dataclasses.replace(opening, ids=tuple(first_row[:length]))
    return LookSubject(opening, conversation, pictures, writer, options)


def _build_opening(request: Request, ids: Sequence[int]) -> Opening:
    inputs = {**request.without_cache, "attention_mask": request.attention_mask}
    inputs |= take_rows(inputs, [0])
    copied = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return Opening(copied, tuple(ids), request.pictures)


def _holds_messages(subject: Any) -> bool:
    """Whether something is a conversation, or a list of them, and no picture or list of pictures."""
    messages = subject[0] if is_batch(subject) else subject
    return isinstance(messages, (list, tuple)) and bool(messages) and isinstance(messages[0], Mapping)


def _write_message(pictures: Any) -> list[dict[str, Any]]:
    values = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    return [{"role": "user", "content": [content_item("image", value) for value in values]}]
