"""Short questions about a picture, as revisions ask them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lvlm_guard.errors import ModelRefused
from lvlm_guard.request import conversation

SETTINGS = {"max_new_tokens": 16, "do_sample": False}
"""How a question about a picture is answered."""


def ask_about_picture(
    guard: Any, questions: Sequence[str], picture: Any, options: Mapping[str, Any], lists: Mapping[str, Any]
) -> list[str]:
    """Return short answers of a guard about a picture: on a look where several questions go on from one, else on whole prompts.

    Args:
        guard: The guard.
        questions: The questions.
        picture: The picture.
        options: What the picture is read with.
        lists: Arguments of generate that list something for each question.
    """
    if len(questions) > 1 and not lists:
        try:
            with guard.looking([picture], **options) as look:
                answers: list[str] = look.ask(questions, **SETTINGS)
                return answers
        except ModelRefused:
            pass  # it cannot go on from a look, or the whole prompts below are refused for the same reason
    return _ask_whole(guard, questions, picture, options, lists) if questions else []


def _ask_whole(
    guard: Any, questions: Sequence[str], picture: Any, options: Mapping[str, Any], lists: Mapping[str, Any]
) -> list[str]:
    batch = guard.inputs(messages=[[conversation.write_question(text, picture)] for text in questions], **options)
    output = guard.generate(**batch, **lists, **SETTINGS)
    answers: list[str] = conversation.decode_answers(guard.processor, batch, output, many=True)
    return answers
