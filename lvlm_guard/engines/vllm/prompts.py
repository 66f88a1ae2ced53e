"""Prompts of vLLM as requests of the guard, and members of a group as prompts of vLLM."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.inputs import EngineInput
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalKwargsItem, MultiModalKwargsItems, PlaceholderRange

from lvlm_guard import anatomy
from lvlm_guard.engines.vllm.translation import GroupMember
from lvlm_guard.errors import InputError, ModeRefused, StrategyRefused
from lvlm_guard.request.requests import Pictures, Request

IMAGE = "image"
PICTURES = "lvlm_guard_pictures"
"""Key under which a rendered prompt keeps the pictures that it was made of."""


@dataclass(frozen=True)
class PromptReader:
    """Reads rendered prompts.

    Args:
        config: The model's config.
        processor: The processor of transformers, or None.
    """

    config: Any
    processor: Any

    def read_request(self, prompt: EngineInput) -> Request:
        """Return a rendered prompt as the request that `Guard.generate` would get.

        Raises:
            ModeRefused: It holds embeddings, a video, pixels that are no floats, or something else that groups are not made of.
        """
        if prompt["type"] not in ("token", "multimodal"):
            raise ModeRefused(
                f"A guarded request in vLLM is made of text and images, got a prompt of type {prompt['type']!r}."
            )
        inputs: dict[str, Any] = {"input_ids": torch.tensor([prompt["prompt_token_ids"]])}
        if prompt["type"] == "multimodal":
            _check_modalities(prompt)
            inputs |= prompt["mm_kwargs"].get_data()
        inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        if prompt["type"] == "multimodal" and not any(map(anatomy.is_pixels, inputs, inputs.values())):
            raise ModeRefused(
                "The images of a guarded request in vLLM are one tensor of pixels in floats, and this prompt's are not: pass images that "
                "lie alike, and leave mm_device_do_normalize out."
            )
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return Request(inputs, {}, self.config, self.processor, self._read_pictures(prompt))

    def _read_pictures(self, prompt: Mapping[str, Any]) -> Pictures | None:
        pictures = prompt.get(PICTURES)
        image_processor = getattr(self.processor, "image_processor", None)
        if not pictures or image_processor is None:
            return None
        return Pictures(tuple(pictures), lambda edited: image_processor(images=list(edited), return_tensors="pt"))


def write_prompt(member: GroupMember, prompt: EngineInput, own_salt: str | None = None) -> EngineInput:
    """Return a member of a group as a rendered prompt.

    Args:
        member: The member.
        prompt: The user's prompt, whose images it has, edited or not, or none.
        own_salt: What keeps the member's cache apart from that of all other requests; None where it may be shared.

    Raises:
        StrategyRefused: The member's prompt and images do not fit together.
    """
    salt = prompt.get("cache_salt")
    if own_salt is not None:
        salt = own_salt if salt is None else f"{salt}-{own_salt}"
    if len(member.ids) <= 1:
        raise InputError(
            "A guarded request in vLLM needs prompts of two tokens or more, for main and for every branch."
        )
    if not any(anatomy.is_pixels(name, value) for name, value in member.inputs.items()):
        return tokens_input(list(member.ids), cache_salt=salt)
    items = [_write_item(item, parts) for item, parts in _pair_items(prompt, member.inputs)]
    before = prompt["mm_kwargs"][IMAGE]
    hashes = [
        name if item is old else f"{name}-{_digest(item)}"
        for name, item, old in zip(prompt["mm_hashes"][IMAGE], items, before, strict=True)
    ]
    places = move_places(prompt["prompt_token_ids"], member.ids, prompt["mm_placeholders"][IMAGE])
    return mm_input(
        list(member.ids), MultiModalKwargsItems({IMAGE: items}), {IMAGE: hashes}, {IMAGE: places}, cache_salt=salt
    )


def move_places(
    before: Sequence[int], after: Sequence[int], places: Sequence[PlaceholderRange]
) -> list[PlaceholderRange]:
    """Return where images stand in a prompt that was edited round them.

    Raises:
        StrategyRefused: An image is not in the edited prompt as it was.
    """
    moved, start = [], 0
    for place in places:
        span = list(before[place.offset : place.offset + place.length])
        offset = find_span(after, span, start)
        if offset is None:
            raise StrategyRefused("A branch changes the prompt inside an image, which a request in vLLM cannot follow.")
        moved.append(dataclasses.replace(place, offset=offset))
        start = offset + place.length
    return moved


def find_span(ids: Sequence[int], span: Sequence[int], start: int) -> int | None:
    """Return the first index from `start` on at which `span` stands in `ids`; None where it does not."""
    span_ids = list(span)
    return next(
        (
            index
            for index in range(start, len(ids) - len(span_ids) + 1)
            if list(ids[index : index + len(span_ids)]) == span_ids
        ),
        None,
    )


def _check_modalities(prompt: Mapping[str, Any]) -> None:
    modalities = sorted(set(prompt["mm_kwargs"]) - {IMAGE})
    if modalities:
        raise ModeRefused(
            f"A guarded request in vLLM may hold images, not {', '.join(modalities)}: leave them out, or stack='plain'."
        )
    if any(item is None for item in prompt["mm_kwargs"].get(IMAGE, ())):
        raise ModeRefused(
            "The images of a guarded request lie in a cache of the engine alone: set mm_processor_cache_gb=0."
        )


def _pair_items(
    prompt: Mapping[str, Any], inputs: Mapping[str, Tensor]
) -> Iterator[tuple[MultiModalKwargsItem, dict[str, Tensor]]]:
    """Yield each image of the prompt with its parts of the edited inputs."""
    offsets = dict.fromkeys(inputs, 0)
    for index, item in enumerate(prompt["mm_kwargs"][IMAGE]):
        parts = {}
        for name, element in item.items():
            if name in inputs and isinstance(element.data, Tensor):
                parts[name] = _cut(inputs[name], element.data, index, offsets, name)
        yield item, parts


def _cut(value: Tensor, data: Tensor, index: int, offsets: dict[str, int], name: str) -> Tensor:
    """Return the part of an input that belongs to one image: an entry of it, or as many rows as the image had."""
    if value.ndim == data.ndim + 1:
        return value[index]
    start = offsets[name]
    offsets[name] = start + len(data)
    return value[start : start + len(data)]


def _write_item(item: MultiModalKwargsItem, parts: Mapping[str, Tensor]) -> MultiModalKwargsItem:
    """Return an image with other values, itself where none is another.

    Raises:
        StrategyRefused: An edit changed how an image lies.
    """
    changed = {name: part for name, part in parts.items() if not _equal(part, item[name].data)}
    if not changed:
        return item
    for name, part in changed.items():
        if part.shape != item[name].data.shape:
            raise StrategyRefused(f"A strategy changes the shape of {name}, which a request in vLLM cannot follow.")
    elements = {
        name: dataclasses.replace(element, data=changed[name].to(element.data.dtype)) if name in changed else element
        for name, element in item.items()
    }
    return MultiModalKwargsItem(elements)


def _equal(edited: Tensor, original: Tensor) -> bool:
    return edited.shape == original.shape and torch.equal(edited.to(original.dtype), original)


def _digest(item: MultiModalKwargsItem) -> str:
    """Return a digest of every value of an edited image, by which caches of the engine know it."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(item):
        data = item[name].data
        if isinstance(data, Tensor):
            digest.update(f"{name}{tuple(data.shape)}{data.dtype}".encode())
            digest.update(data.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
