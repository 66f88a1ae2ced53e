"""Short questions about a picture, as revisions ask them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lvlm_guard.call.plain import FIRST_LOGITS, find_start
from lvlm_guard.errors import ModelRefused, ModeRefused
from lvlm_guard.request import conversation

SETTINGS = {"max_new_tokens": 16, "do_sample": False}
"""How a question about a picture is answered."""


def ask_about_picture(guard: Any, questions: Sequence[str], picture: Any, options: Mapping[str, Any]) -> list[str]:
    """Return short answers of a guard about a picture: on a look where several questions go on from one, else on whole prompts.

    Args:
        guard: The guard.
        questions: The questions.
        picture: The picture.
        options: What the picture is read with.
    """
    if len(questions) > 1:
        try:
            with guard.looking([picture], **options) as look:
                answers: list[str] = look.ask(questions, **SETTINGS)
                return answers
        except ModelRefused:
            pass  # it cannot go on from a look, or the whole prompts below are refused for the same reason
    return _ask_whole(guard, questions, picture, options) if questions else []


def _ask_whole(guard: Any, questions: Sequence[str], picture: Any, options: Mapping[str, Any]) -> list[str]:
    batch = guard.inputs(messages=[[conversation.write_question(text, picture)] for text in questions], **options)
    output, report = guard.generate_with_report(**batch, **SETTINGS)
    start = find_start(output, report)
    answers: list[str] = conversation.decode_answers(guard.processor, output, start, many=True)
    return answers


def read_first_logits(guard: Any, questions: Sequence[str], picture: Any, options: Mapping[str, Any]) -> Tensor:
    """Return guarded logits of the first token of each answer `[questions, vocab]`, in fp32; else as `ask_about_picture`."""
    if len(questions) > 1:
        try:
            with guard.looking([picture], **options) as look:
                logits: Tensor = look.first_logits(questions)
                return logits
        except (ModelRefused, ModeRefused):
            pass  # as above, or the questions would run in groups of one length, which have no common logits
    batch = guard.inputs(messages=[[conversation.write_question(text, picture)] for text in questions], **options)
    of_prompts: Tensor = guard.generate(**batch, **FIRST_LOGITS).logits[0].float()
    return of_prompts
