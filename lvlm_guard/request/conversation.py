"""Pictures and words in, model inputs out; sequences in, answers out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lvlm_guard.errors import InputError, ProcessorNeeded
from lvlm_guard.outputs import sequences
from lvlm_guard.protocols import Model, Processor
from lvlm_guard.request.recent_pictures import RecentPictures
from lvlm_guard.request.requests import Pictures

Conversation = list[dict[str, Any]]


def prepare_inputs(
    model: Model,
    processor: Processor | None,
    recent: RecentPictures,
    images: Any,
    text: str | Sequence[str] | None,
    messages: Sequence[Any] | None,
    options: Mapping[str, Any],
) -> Any:
    """Return the processor's batch for `Guard.inputs`, and remember its pictures in `recent`.

    Raises:
        ProcessorNeeded: There is no processor.
        InputError: Neither or both of text and messages, or a picture or message that cannot be read.
    """
    if processor is None:
        raise ProcessorNeeded("guard.inputs needs the processor: Guard(model, processor).")
    if (text is None) == (messages is None):
        raise InputError("Give either text= or messages= to guard.inputs.")
    pictures = [_read_picture(image) for image in _as_list(images)]
    if messages is not None:
        text, pictures_in_messages = _apply_template(processor, messages, with_images=bool(pictures))
        pictures = pictures or pictures_in_messages
    prompts = [text] if isinstance(text, str) else list(text or ())

    def process(images: list[Any]) -> Any:
        return _process(processor, images, prompts, options)

    batch = process(pictures).to(device=model.device, dtype=model.dtype)
    if pictures:
        recent.remember(batch, Pictures(tuple(pictures), process))
    return batch


def is_batch(messages: Sequence[Any]) -> bool:
    """Return whether `messages` is a list of conversations rather than one conversation."""
    return bool(messages) and not isinstance(messages[0], Mapping)


def decode_answers(processor: Processor, batch: Mapping[str, Any], output: Any, *, many: bool) -> Any:
    """Return the texts generated behind the prompts: a list, or the text itself for a single one unless `many`."""
    texts = processor.batch_decode(sequences(output)[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    texts = [text.strip() for text in texts]
    return texts if many or len(texts) != 1 else texts[0]


def write_question(text: str, picture: Any) -> dict[str, Any]:
    """Return one message of a user: a picture and a question about it."""
    return {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}


def _process(processor: Any, pictures: list[Any], prompts: list[str], options: Mapping[str, Any]) -> Any:
    tokenizer = getattr(processor, "tokenizer", processor)
    side = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        return processor(images=pictures or None, text=prompts, return_tensors="pt", padding=True, **options)
    finally:
        tokenizer.padding_side = side


def _apply_template(processor: Processor, messages: Sequence[Any], *, with_images: bool) -> tuple[list[str], list[Any]]:
    """Return prompts by the processor's chat template, and the pictures that stand in the messages."""
    batch = list(messages) if is_batch(messages) else [messages]
    conversations = [[_normalise_message(message) for message in conversation] for conversation in batch]
    if not any(conversations):
        raise InputError("messages is empty: give at least one message with a role and content.")
    pictures = []
    for conversation in conversations:
        pictures += _read_pictures(conversation)
        if with_images and not _image_items(conversation):
            _find_user_message(conversation)["content"].insert(0, {"type": "image"})
    prompts = [
        processor.apply_chat_template(_strip_pictures(conversation), add_generation_prompt=True, tokenize=False)
        for conversation in conversations
    ]
    return prompts, pictures


def _normalise_message(message: Any) -> dict[str, Any]:
    """Return a message whose content is a list of items."""
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise InputError(f"A message has a role and content, got {message!r}.")
    content = message["content"]
    items = [{"type": "text", "text": content}] if isinstance(content, str) else copy.copy(list(content))
    return {**message, "content": items}


def _find_user_message(conversation: Conversation) -> dict[str, Any]:
    user = next((message for message in conversation if message["role"] == "user"), None)
    if user is None:
        raise InputError("There is an image, but no message of the user to put it into.")
    return user


def _image_items(conversation: Conversation) -> list[dict[str, Any]]:
    return [item for message in conversation for item in message["content"] if item.get("type") == "image"]


def _read_pictures(conversation: Conversation) -> list[Any]:
    """Return the pictures that stand in the messages, under any of the names that templates use."""
    names = ("image", "path", "url")
    values = [next((item[name] for name in names if name in item), None) for item in _image_items(conversation)]
    return [_read_picture(value) for value in values if value is not None]


def _strip_pictures(conversation: Conversation) -> Conversation:
    """Return messages without the pictures themselves, which templates do not need."""
    return [
        {
            **message,
            "content": [{"type": "image"} if item.get("type") == "image" else item for item in message["content"]],
        }
        for message in conversation
    ]


def _as_list(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _read_picture(value: Any) -> Any:
    """Read a picture from a path or array; PIL pictures pass.

    Raises:
        InputError: It cannot be read.
    """
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if isinstance(value, np.ndarray):
        return Image.fromarray(value).convert("RGB")
    if isinstance(value, (str, Path)):
        try:
            with Image.open(value) as opened:
                return opened.convert("RGB")
        except OSError as error:
            raise InputError(f"The picture {str(value)!r} cannot be read: {error}.") from None
    raise InputError(f"A picture is a PIL image, an array or a local path, got {type(value).__name__}.")
