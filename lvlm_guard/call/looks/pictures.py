"""Short questions about a picture that was answered about before, as revisions ask them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from lvlm_guard import anatomy
from lvlm_guard.arithmetic.effects import format_key
from lvlm_guard.call.answered import SHARED, AnsweredPrompts
from lvlm_guard.call.looks.look import Look, LookingGuard
from lvlm_guard.call.looks.opening import LookSubject, open_subject
from lvlm_guard.call.looks.taking_over import AnsweredRow
from lvlm_guard.call.plain import FIRST_LOGITS, find_start
from lvlm_guard.errors import InputError, ModelRefused, ModeRefused
from lvlm_guard.forward.prefixes import describe_state
from lvlm_guard.request import conversation
from lvlm_guard.strategy.branches import MAIN

Read: TypeAlias = Literal["answers", "first_logits"]
"""What is read of answers: their texts, or the guarded logits of their first tokens `[questions, vocab]`, fp32."""
SETTINGS = {"max_new_tokens": 16, "do_sample": False}
"""How a question about a picture is answered."""
INEXACT = "this model does not go on exactly from the middle of a prompt that was answered"


def ask_about_picture(
    guard: LookingGuard,
    questions: Sequence[str],
    picture: Any,
    options: Mapping[str, Any],
    answered: AnsweredPrompts,
    row: int,
    read: Read = "answers",
) -> Any:
    """Return short answers of a guard about a picture, or the logits of their first tokens.

    The questions go on from how the prompt of the answer began where that is exact, several of them on a look of their own
    elsewhere, and else they run whole; the answered prompts note which and why.

    Args:
        guard: What answers.
        questions: The questions.
        picture: The picture.
        options: What the picture is read with.
        answered: The prompts of the call that was answered about it.
        row: Which of them.
        read: What is read of the answers.
    """
    if not questions:
        return []
    source = AnsweredRow(answered, row)
    subject = _open(guard, picture, options)
    continuation = subject if isinstance(subject, str) else _take_over(guard, subject, source)
    if isinstance(continuation, LookSubject):
        answers = _ask_on(guard, continuation, questions, read, source)
        if answers is not None:
            return answers
        continuation = INEXACT
    answered.note(MAIN, continuation)
    if len(questions) > 1 and isinstance(subject, LookSubject):
        answers = _ask_on(guard, subject, questions, read)
        if answers is not None:
            return answers
    return _ask_whole(guard.maker, questions, picture, options, read)


def _open(guard: LookingGuard, picture: Any, options: Mapping[str, Any]) -> LookSubject | str:
    """Return a picture as the subject of a look, or why no look at it is of use."""
    try:
        return open_subject(guard.maker, guard.build_request, [picture], None, options)
    except InputError as error:
        return str(error)


def _take_over(guard: LookingGuard, subject: LookSubject, source: AnsweredRow) -> LookSubject | str:
    """Return the subject of a look that begins as the answered prompt did, or why that one cannot be gone on from."""
    obstacle = source.find_obstacle(subject.opening.inputs, describe_state(guard.model))
    if obstacle:
        return obstacle
    ids, shared = subject.opening.ids, source.count_shared(subject.opening.ids)
    token = anatomy.image_token_id(guard.model.config)
    if shared < len(ids) and (token not in ids or token in ids[shared:]):
        return "the prompt of the answer begins otherwise"
    return dataclasses.replace(subject, opening=dataclasses.replace(subject.opening, ids=ids[:shared]))


def _ask_on(
    guard: LookingGuard, subject: LookSubject, questions: Sequence[str], read: Read, source: AnsweredRow | None = None
) -> Any:
    """Return answers on a look, which notes what it took from the answered prompt; None where the model cannot look."""
    look = Look(subject, guard, answered=source)
    try:
        answers = look.ask(list(questions), **SETTINGS) if read == "answers" else look.first_logits(questions)
    except (ModelRefused, ModeRefused):
        return None  # groups of one length have no common logits, or whole prompts are refused for the same reason
    finally:
        look.close()
    if source is not None:
        _note(source, guard.maker.report.prompts)
    return answers


def _note(source: AnsweredRow, prompts: Mapping[str, str]) -> None:
    """Note how the prompts of questions ran; those that went on from a prefix of their own say why."""
    not_taken = {key if key == MAIN else format_key(key): reason for key, reason in source.not_taken.items()}
    for name, outcome in prompts.items():
        source.answered.note(name, not_taken.get(name, "") if outcome == SHARED else outcome)


def _ask_whole(guard: Any, questions: Sequence[str], picture: Any, options: Mapping[str, Any], read: Read) -> Any:
    batch = guard.inputs(messages=[[conversation.write_question(text, picture)] for text in questions], **options)
    if read == "first_logits":
        return guard.generate(**batch, **FIRST_LOGITS).logits[0].float()
    output, report = guard.generate_with_report(**batch, **SETTINGS)
    start = find_start(output, report)
    answers: list[str] = conversation.decode_answers(guard.processor, output, start, many=True)
    return answers
