"""Pictures and words in, model inputs out; sequences in, answers out."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.errors import InputError, ProcessorNeeded
from lvlm_guard.outputs import sequences
from lvlm_guard.request.requests import Pictures

REMEMBERED = 16
SAMPLES = 256


@dataclass(frozen=True)
class _Memory:
    input_ids: Tensor
    signature: Tensor
    pictures: Pictures


class PictureMemory:
    """Remembers which pictures recent inputs were made of, across moves to other devices and dtypes."""

    def __init__(self) -> None:
        self._recent: deque[_Memory] = deque(maxlen=REMEMBERED)

    def keep(self, batch: Mapping[str, Any], pictures: Pictures) -> None:
        """Remember the pictures behind `batch`."""
        if (signature := _signature(batch)) is not None:
            self._recent.append(_Memory(batch["input_ids"].cpu(), signature, pictures))

    def find(self, inputs: Mapping[str, Any]) -> Pictures | None:
        """Return the pictures behind `inputs`, or None when they were made elsewhere."""
        if not self._recent or (signature := _signature(inputs)) is None:
            return None
        ids = inputs["input_ids"].cpu()
        for memory in reversed(self._recent):
            same_text = memory.input_ids.shape == ids.shape and torch.equal(memory.input_ids, ids)
            if same_text and _close(memory.signature, signature):
                return memory.pictures
        return None


def _signature(inputs: Mapping[str, Any]) -> Tensor | None:
    """A few hundred evenly spaced pixels, on the CPU in fp32; None without pixels."""
    pixels = next((value for name, value in inputs.items() if anatomy.is_pixels(name, value)), None)
    if pixels is None or "input_ids" not in inputs:
        return None
    flat = pixels.detach().flatten()
    return flat[:: max(flat.numel() // SAMPLES, 1)].float().cpu()


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding to half precision."""
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=2e-2, atol=2e-2))


def prepare(
    model: Any,
    processor: Any,
    memory: PictureMemory,
    images: Any,
    text: str | Sequence[str] | None,
    messages: Sequence[Any] | None,
    options: Mapping[str, Any],
) -> Any:
    """Build the processor's batch for `Guard.inputs`."""
    if processor is None:
        raise ProcessorNeeded("guard.inputs needs the processor: Guard(model, processor).")
    if (text is None) == (messages is None):
        raise InputError("Give either text= or messages= to guard.inputs.")
    pictures = [_picture(one) for one in _as_list(images)]
    if messages is not None:
        text, found = _from_messages(processor, messages, with_images=bool(pictures))
        pictures = pictures or found
    prompts = [text] if isinstance(text, str) else list(text or ())

    def process(given: list[Any]) -> Any:
        return _process(processor, given, prompts, options)

    batch = process(pictures).to(device=model.device, dtype=model.dtype)
    if pictures:
        memory.keep(batch, Pictures(tuple(pictures), process))
    return batch


def _process(processor: Any, pictures: list[Any], prompts: list[str], options: Mapping[str, Any]) -> Any:
    tokenizer = getattr(processor, "tokenizer", processor)
    side = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        return processor(images=pictures or None, text=prompts, return_tensors="pt", padding=True, **options)
    finally:
        tokenizer.padding_side = side


def is_batch(messages: Sequence[Any]) -> bool:
    """Whether `messages` is a list of conversations rather than one conversation."""
    return bool(messages) and not isinstance(messages[0], Mapping)


def _from_messages(processor: Any, messages: Sequence[Any], *, with_images: bool) -> tuple[list[str], list[Any]]:
    """Prompts by the processor's chat template, and the pictures that stand in the messages."""
    conversations = list(messages) if is_batch(messages) else [messages]
    normal = [[_message(one) for one in conversation] for conversation in conversations]
    if not any(normal):
        raise InputError("messages is empty: give at least one message with a role and content.")
    pictures = []
    for conversation in normal:
        found = _pictures_of(conversation)
        pictures += found
        if with_images and not _image_items(conversation):
            _user_message(conversation)["content"].insert(0, {"type": "image"})
    template = processor.apply_chat_template
    return [template(_bare(one), add_generation_prompt=True, tokenize=False) for one in normal], pictures


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise InputError(f"A message has a role and content, got {message!r}.")
    content = message["content"]
    items = [{"type": "text", "text": content}] if isinstance(content, str) else copy.copy(list(content))
    return {**message, "content": items}


def _user_message(conversation: list[dict[str, Any]]) -> dict[str, Any]:
    user = next((one for one in conversation if one["role"] == "user"), None)
    if user is None:
        raise InputError("There is an image, but no message of the user to put it into.")
    return user


def _image_items(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for one in conversation for item in one["content"] if item.get("type") == "image"]


def _pictures_of(conversation: list[dict[str, Any]]) -> list[Any]:
    names = ("image", "path", "url")
    given = [next((item[name] for name in names if name in item), None) for item in _image_items(conversation)]
    return [_picture(one) for one in given if one is not None]


def _bare(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without the pictures themselves, which templates do not need."""
    return [
        {**one, "content": [{"type": "image"} if item.get("type") == "image" else item for item in one["content"]]}
        for one in conversation
    ]


def _as_list(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _picture(value: Any) -> Any:
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


def answers(processor: Any, batch: Mapping[str, Any], output: Any, *, many: bool) -> Any:
    """Texts that were generated behind the prompts."""
    texts = processor.batch_decode(sequences(output)[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    texts = [one.strip() for one in texts]
    return texts if many or len(texts) != 1 else texts[0]


def question(text: str, picture: Any) -> dict[str, Any]:
    """One message of a user: a picture and a question about it."""
    return {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}
