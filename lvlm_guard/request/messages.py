"""Chat messages as transformers and OpenAI write them, in the form that chat templates take."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import InputError, describe_error, nearest, quote

TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image")
PICTURE_KEYS = ("image", "url", "path", "base64", "image_url")
"""Under which an image item may hold its picture."""
PLACEHOLDER = {"type": "image"}

Conversation = list[dict[str, Any]]


@dataclass(frozen=True)
class ReadMessages:
    """Conversations for a chat template, and the pictures that stood in them.

    Args:
        conversations: Messages whose content is a list of text items and of image items without their pictures.
        pictures: For each conversation one entry for each image item: its picture, or None.
    """

    conversations: list[Conversation]
    pictures: list[list[Any]]

    def place(self, images: Sequence[Any]) -> list[Any]:
        """Return all pictures in the order of the image items, `images` standing in for those that items lack.

        Conversations without an image item get items for the pictures that are left, before the text of the user.

        Raises:
            InputError: There are more or fewer pictures than places.
        """
        self._add_items(len(images) - sum(value is None for values in self.pictures for value in values))
        values = [value for values in self.pictures for value in values]
        lacking = sum(value is None for value in values)
        if lacking != len(images):
            raise InputError(
                f"Image items without a picture: {lacking} of {len(values)}; pictures in images=: {len(images)}. Give one "
                "for each item without its own."
            )
        supply = iter(images)
        return [next(supply) if value is None else value for value in values]

    def _add_items(self, count: int) -> None:
        """Add image items for pictures that have none: all to one conversation, or one to each."""
        empty = [index for index, values in enumerate(self.pictures) if not values]
        if count < 1 or not empty or (len(empty) > 1 and len(empty) != count):
            return
        for index in empty:
            share = count if len(empty) == 1 else 1
            _find_user_message(self.conversations[index])["content"][:0] = [dict(PLACEHOLDER) for _ in range(share)]
            self.pictures[index].extend([None] * share)


def is_batch(messages: Any) -> bool:
    """Return whether `messages` is a list of conversations rather than one conversation."""
    return isinstance(messages, (list, tuple)) and bool(messages) and isinstance(messages[0], (list, tuple))


def read_messages(messages: Any) -> ReadMessages:
    """Read one conversation, or a list of them.

    Raises:
        InputError: A conversation, message or item of another form; the error says where.
    """
    try:
        return _read_batch(messages)
    except InputError:
        raise
    except Exception as error:  # lists and dicts of a class of the user's may raise anything
        raise InputError(f"messages cannot be read: {describe_error(error)}.") from error


def _read_batch(messages: Any) -> ReadMessages:
    if not isinstance(messages, (list, tuple)):
        raise InputError(f"messages is a list of messages, [{{'role': ..., 'content': ...}}], got {quote(messages)}.")
    batch = list(messages) if is_batch(messages) else [messages]
    conversations, pictures = [], []
    for number, conversation in enumerate(batch):
        place = f"messages[{number}]" if is_batch(messages) else "messages"
        if not isinstance(conversation, (list, tuple)):
            raise InputError(f"{place} is no list of messages, as the others are, got {quote(conversation)}.")
        if not conversation:
            raise InputError(f"{place} is empty: give at least one message with a role and content.")
        values: list[Any] = []
        conversations.append(
            [_read_message(message, f"{place}[{index}]", values) for index, message in enumerate(conversation)]
        )
        pictures.append(values)
    return ReadMessages(conversations, pictures)


def _read_message(message: Any, place: str, pictures: list[Any]) -> dict[str, Any]:
    """Return a message whose content is a list of items; pictures are moved to `pictures`."""
    if (
        not isinstance(message, Mapping)
        or "role" not in message
        or not ("content" in message or "tool_calls" in message)
    ):
        raise InputError(f"{place}: a message is a dict with a role and content, got {quote(message)}.")
    role, content = message["role"], message.get("content")
    if not isinstance(role, str) or not role:
        raise InputError(f"{place}: a role is a text such as 'user', got {quote(role)}.")
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, (list, tuple)):
        raise InputError(f"{place}: tool_calls is a list of calls, got {quote(calls)}.")
    if content is None and calls:
        content = []
    if isinstance(content, str):
        content = [content_item("text", content)]
    if not isinstance(content, (list, tuple)):
        raise InputError(f"{place}: content is a text or a list of items, got {quote(content)}.")
    items = [_read_item(item, f"{place}, item {index}", pictures) for index, item in enumerate(content)]
    return {**message, "content": items}


def content_item(kind: str, value: Any) -> dict[str, Any]:
    """Return an item of a message's content, of one type and its value under the same name."""
    return {"type": kind, kind: value}


def _read_item(item: Any, place: str, pictures: list[Any]) -> dict[str, Any]:
    """Return an item as templates take it; a picture in it is moved to `pictures`."""
    if isinstance(item, (Image.Image, np.ndarray, Tensor, os.PathLike)):
        item = content_item("image", item)
    if not isinstance(item, Mapping):
        raise InputError(
            f"{place}: an item is a dict, {{'type': 'text', 'text': ...}} or {{'type': 'image', 'image': ...}}, got {quote(item)}."
        )
    kind = item.get("type", "text" if "text" in item else "image")
    if not isinstance(kind, str) or kind not in (*TEXT_TYPES, *IMAGE_TYPES):
        hint = nearest(kind, ("text", *IMAGE_TYPES))
        raise InputError(f"{place}: items are texts and pictures, got the type {quote(kind)}.{hint}")
    if kind in TEXT_TYPES:
        return _read_text(item, place)
    pictures.append(_take_picture(item, place))
    return dict(PLACEHOLDER)


def _read_text(item: Mapping[Any, Any], place: str) -> dict[str, Any]:
    text = item.get("text")
    if not isinstance(text, str):
        raise InputError(f"{place}: the text of an item is a text, got {quote(text)}.")
    if any(item.get(key) is not None for key in PICTURE_KEYS):
        raise InputError(f"{place}: a picture in a text item would not be seen; make it an item of type 'image'.")
    return content_item("text", text)


def _take_picture(item: Mapping[Any, Any], place: str) -> Any:
    """Return the picture in an image item, or None where it is only a place for one."""
    values = {key: item[key] for key in PICTURE_KEYS if item.get(key) is not None}
    if len(values) > 1:
        raise InputError(f"{place}: an image item holds one picture, got {', '.join(values)}.")
    if isinstance(item.get("text"), str):
        raise InputError(f"{place}: the text in an image item would not be read; make it an item of type 'text'.")
    value = next(iter(values.values()), None)
    if isinstance(value, Mapping) and "url" in value:
        value = value["url"]
    is_place = item.get("type") == "image" and not any(item[key] is not None for key in item if key != "type")
    if value is None and not is_place:
        raise InputError(
            f"{place}: an item of a picture holds it under {', '.join(PICTURE_KEYS)}, got {quote(list(item))}."
        )
    return value


def _find_user_message(conversation: Conversation) -> dict[str, Any]:
    user = next((message for message in conversation if message["role"] == "user"), None)
    if user is None:
        raise InputError("There is an image, but no message of the user to put it into.")
    return user
