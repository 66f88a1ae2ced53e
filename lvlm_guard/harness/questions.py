"""Requests of lmms-eval as questions, and its generation settings as arguments of generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_guard.errors import GuardWarning, InputError
from lvlm_guard.request.messages import PICTURE_KEYS
from lvlm_guard.request.requests import SETTINGS
from lvlm_guard.user_warnings import warn_user

BLANK_LINE = "\n\n"
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that have no meaning in a greedy call."""

LENGTHS = ("max_new_tokens", "max_gen_toks")
"""Names of the length limit, in order of precedence."""

FIELDS = 5
"""Messages, settings, document, task, split: the last arguments of a request in all versions."""


@dataclass(frozen=True)
class HarnessQuestion:
    """One conversation to continue.

    Args:
        messages: Messages as chat templates take them, including pictures.
        settings: Arguments of generate.
        stops: Texts that end the answer and are not part of it.
    """

    messages: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    stops: tuple[str, ...] = ()

    @property
    def has_picture(self) -> bool:
        """Whether the messages contain a picture."""
        return any(item.get("type") == "image" for item in _list_items(self.messages))

    def list_pictures(self) -> list[Any]:
        """Return the pictures in the messages, in order."""
        items = [item for item in _list_items(self.messages) if item.get("type") == "image"]
        return [next((item[key] for key in PICTURE_KEYS if item.get(key) is not None), None) for item in items]


def read_request(
    arguments: Sequence[Any], documents: Mapping[str, Any], *, length: int, blank_line: bool = False
) -> HarnessQuestion:
    """Read the arguments of a request of the chat kind.

    Args:
        arguments: `(context, document to messages, settings, document, task, split)`; some versions omit the context.
        documents: Documents by task, split and number.
        length: Limit of new tokens for tasks that do not set one.
        blank_line: Whether a blank line in `until` ends an answer.

    Raises:
        InputError: A request of another kind, or one with video or audio.
    """
    if len(arguments) < FIELDS:
        raise InputError(f"A request of the chat kind has {FIELDS} or 6 arguments, got {len(arguments)}.")
    to_messages, task_settings, number, task, split = arguments[-FIELDS:]
    if not callable(to_messages) or not isinstance(task_settings, Mapping):
        raise InputError(
            f"{task}: this is not a request of the chat kind. Leave --force_simple out, and choose tasks that generate "
            "one answer (output_type: generate_until)."
        )
    messages = to_messages(documents[task][split][number])
    _refuse_media(task, messages)
    stops = read_stops(task_settings.get("until"), blank_line=blank_line)
    return HarnessQuestion(messages, translate_settings(task_settings, length), stops)


def _list_items(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [item for message in messages if not isinstance(message["content"], str) for item in message["content"]]


def _refuse_media(task: str, messages: Sequence[Mapping[str, Any]]) -> None:
    kinds = {item.get("type") for item in _list_items(messages)} - {"text", "image"}
    if kinds:
        raise InputError(f"{task}: a guarded model takes text and pictures, but this task has {min(map(str, kinds))}.")


def translate_settings(task_settings: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return arguments of generate.

    A temperature of 0 or `do_sample: false` means greedy, and all sampling settings are then dropped. Names that generate
    does not know, such as `image_aspect_ratio`, are left out with a warning.
    """
    unknown = sorted(name for name in task_settings if name not in {*SETTINGS, *LENGTHS, "until"})
    if unknown:
        warn_user(f"Not an argument of generate, so left out: {', '.join(unknown)}.", GuardWarning)
    arguments = {name: value for name, value in task_settings.items() if name in SETTINGS and value is not None}
    limits = [task_settings[name] for name in LENGTHS if task_settings.get(name) is not None]
    arguments["max_new_tokens"] = int(limits[0] if limits else length)
    arguments["do_sample"] = _should_sample(task_settings)
    dropped = () if arguments["do_sample"] else SAMPLING
    return {name: value for name, value in arguments.items() if name not in dropped}


def _should_sample(task_settings: Mapping[str, Any]) -> bool:
    temperature, do_sample = task_settings.get("temperature"), task_settings.get("do_sample")
    if temperature is not None and float(temperature) == 0:
        return False
    return bool(temperature is not None if do_sample is None else do_sample)


def read_stops(until: Any, *, blank_line: bool) -> tuple[str, ...]:
    """Return the texts that end an answer, from a task's `until`: None, a text, or a list."""
    stops = [until] if isinstance(until, str) else list(until or ())
    return tuple(stop for stop in stops if stop and (blank_line or stop != BLANK_LINE))


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of the stops, without surrounding whitespace."""
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends, default=len(text))].strip()
