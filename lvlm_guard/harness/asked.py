"""Requests of lmms-eval, unpacked, and its generation settings turned into arguments of generate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_guard.errors import GuardWarning, InputError
from lvlm_guard.request.requests import SETTINGS

BLANK_LINE = "\n\n"
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that mean nothing to a greedy call."""

LENGTHS = ("max_new_tokens", "max_gen_toks")
"""Names of the length limit, in the order in which they count."""

FIELDS = 5
"""Messages, settings, document, task, split: the end of a request's arguments in all versions."""


@dataclass(frozen=True)
class Asked:
    """One conversation to continue.

    Args:
        messages: As chat templates take them, pictures inside.
        settings: Arguments of generate.
        until: Texts that end the answer and do not belong to it.
    """

    messages: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    until: tuple[str, ...] = ()

    @property
    def has_picture(self) -> bool:
        """Whether a picture stands in the messages."""
        return any(item.get("type") == "image" for item in _items(self.messages))


def unpack(arguments: Sequence[Any], documents: Mapping[str, Any], *, length: int, blank_line: bool = False) -> Asked:
    """Read the arguments of a request of the chat kind.

    Args:
        arguments: `(context, document to messages, settings, document, task, split)`; some versions leave the context out.
        documents: Documents by task, split and number.
        length: Limit of new tokens for tasks that set none.
        blank_line: Whether a blank line in `until` counts.

    Raises:
        InputError: A request of another kind, or one with video or audio.
    """
    if len(arguments) < FIELDS:
        raise InputError(f"A request of the chat kind has {FIELDS} or 6 arguments, got {len(arguments)}.")
    to_messages, given, number, task, split = arguments[-FIELDS:]
    if not callable(to_messages) or not isinstance(given, Mapping):
        raise InputError(
            f"{task}: this is no request of the chat kind. Leave --force_simple out, and choose tasks that generate one "
            "answer (output_type: generate_until)."
        )
    messages = to_messages(documents[task][split][number])
    _refuse_media(task, messages)
    return Asked(messages, settings(given, length), until(given.get("until"), blank_line=blank_line))


def _items(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [item for one in messages if not isinstance(one["content"], str) for item in one["content"]]


def _refuse_media(task: str, messages: Sequence[Mapping[str, Any]]) -> None:
    kinds = {item.get("type") for item in _items(messages)} - {"text", "image"}
    if kinds:
        raise InputError(f"{task}: a guarded model takes text and pictures, and this task has {min(map(str, kinds))}.")


def settings(given: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Arguments of generate; a temperature of 0 or `do_sample: false` means greedy, and the rest of sampling is dropped.

    Names that generate does not know, such as `image_aspect_ratio`, are left out with a warning.
    """
    unknown = sorted(name for name in given if name not in {*SETTINGS, *LENGTHS, "until"})
    if unknown:
        warnings.warn(f"Not an argument of generate, so left out: {', '.join(unknown)}.", GuardWarning, stacklevel=2)
    kept = {name: value for name, value in given.items() if name in SETTINGS and value is not None}
    limits = [given[name] for name in LENGTHS if given.get(name) is not None]
    kept["max_new_tokens"] = int(limits[0] if limits else length)
    kept["do_sample"] = _samples(given)
    dropped = () if kept["do_sample"] else SAMPLING
    return {name: value for name, value in kept.items() if name not in dropped}


def _samples(given: Mapping[str, Any]) -> bool:
    temperature, asked = given.get("temperature"), given.get("do_sample")
    if temperature is not None and float(temperature) == 0:
        return False
    return bool(temperature is not None if asked is None else asked)


def until(given: Any, *, blank_line: bool) -> tuple[str, ...]:
    """Texts that end an answer, from what a task says: None, a text, or a list."""
    stops = [given] if isinstance(given, str) else list(given or ())
    return tuple(one for one in stops if one and (blank_line or one != BLANK_LINE))


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops, without blanks around it."""
    ends = [text.index(one) for one in stops if one in text]
    return text[: min(ends, default=len(text))].strip()
