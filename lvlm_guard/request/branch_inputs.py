"""Model inputs of each branch, and main's own request after edits of its prompt and pictures."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lvlm_guard import anatomy
from lvlm_guard.cache_names import find_cache, name_of_cache
from lvlm_guard.errors import ModelRefused, ProcessorNeeded, StrategyRefused
from lvlm_guard.request import images, prompts
from lvlm_guard.request.pixel_layouts import PixelLayout, read_layout
from lvlm_guard.request.pixel_parts import fit_tiles, is_about_pixels
from lvlm_guard.request.requests import DEFAULT_SETTINGS, Pictures, Request
from lvlm_guard.strategy.branches import Branch, InputEdit

LOOKS_AT = "image_attention_mask"
"""Input of models that take no prompt without pixels: where it is 0, a token looks at no image, as in a prompt that has none."""


def build_branch_inputs(request: Request, branch: Branch, encoded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the model inputs of a branch, left-padded anew when the prompt changed.

    Args:
        request: The user's request.
        branch: What differs.
        encoded: Main's encoded images, which branches with unchanged pixels share; None where the model cannot.

    Raises:
        ModelRefused: The model does not take what the branch edits.
        StrategyRefused: The images or the prompt cannot be edited.
        ProcessorNeeded: There is no processor to recover pictures with.
    """
    inputs = dict(request.without_cache)
    if request.text_name == "input_ids" and request.has_prompt:
        inputs["attention_mask"] = request.attention_mask
    if branch.pixels is not None or branch.picture is not None:
        inputs.update(_edit_images(request, branch))
    elif encoded is not None and not branch.drops_image:
        inputs = share_encoded(inputs, _edit_features(request, branch, encoded))
    elif branch.features is not None:
        raise ModelRefused(f"Branch {branch.key!r} edits image features, which this model or version does not take.")
    if branch.image == "masked":
        inputs["attention_mask"] = _mask_images(request)
    if branch.drops_image:
        inputs = _drop_image_inputs(inputs)
    if branch.drops_image or branch.tokens:
        inputs.update(prompts.edit_tokens(request, branch, inputs))
    return inputs


def _drop_image_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs without what is about images; pixels that no token looks at where the model says so by a mask."""
    if LOOKS_AT in inputs:
        return {**inputs, LOOKS_AT: torch.zeros_like(inputs[LOOKS_AT])}
    return {name: value for name, value in inputs.items() if not anatomy.is_image_input(name)}


def describe_edit(edit: InputEdit) -> Branch:
    """Return the branch that differs from main as an edit of main's own inputs says."""
    return Branch("edited input", edit.pixels, edit.picture, tokens=edit.tokens, seed=edit.seed, inside=True)


def edit_request(request: Request, edit: InputEdit) -> Request:
    """Return the request after an edit of main's own prompt and pictures."""
    inputs = build_branch_inputs(request, describe_edit(edit), None)
    if (cache := find_cache(request.inputs)) is not None:
        inputs[name_of_cache(request.inputs)] = cache
    ids = inputs.get(request.text_name, request.input_ids)
    settings = lengthen_limits(request, ids.shape[1] - request.input_ids.shape[1])
    pictures = _edit_known_pictures(request.pictures, edit)
    return Request(inputs, settings, request.config, request.processor, pictures, request.defaults, request.main_input)


def differs(before: Request, after: Request) -> bool:
    """Return whether the prompt or the pictures of two requests differ in anything."""
    if before is after:
        return False
    names = {name for name, value in after.inputs.items() if name == after.text_name or anatomy.is_pixels(name, value)}
    return any(not _equal(before.inputs.get(name), after.inputs[name]) for name in names)


def _equal(before: Any, after: Tensor) -> bool:
    if not isinstance(before, Tensor) or before.shape != after.shape:
        return False
    return torch.equal(before.to(after.device), after)


def share_encoded(inputs: Mapping[str, Any], encoded: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs with encoded images in place of pixels."""
    without_pixels = {name: value for name, value in inputs.items() if not anatomy.is_pixels(name, value)}
    return {**without_pixels, "mm_encoder_outputs": images.copy_encoded(encoded)}


def _edit_known_pictures(pictures: Pictures | None, edit: InputEdit) -> Pictures | None:
    """Return what later edits of pictures start from; pictures whose pixels were edited are recovered from those."""
    if pictures is None or edit.pixels is not None:
        return None
    if edit.picture is None or pictures.missing:
        return pictures
    edited = images.edit_pictures(pictures.pictures, edit.picture, edit.seed)
    return dataclasses.replace(pictures, pictures=tuple(edited))


def lengthen_limits(request: Request, tokens: int) -> dict[str, Any]:
    """Return settings whose total lengths count a prompt that grew by some tokens."""
    settings = dict(request.settings)
    for name in ("max_length", "min_length"):
        limit, default = request.setting(name), DEFAULT_SETTINGS[name]
        if name in request.settings or limit not in (None, default):
            settings[name] = None if limit is None else limit + tokens
    return settings


def _edit_features(request: Request, branch: Branch, encoded: Mapping[str, Any]) -> Mapping[str, Any]:
    if branch.features is None:
        return encoded
    tokens = list(itertools.chain(*prompts.count_placeholders(request)))
    return images.edit_features(encoded, branch.features, branch.seed, tokens, len(request.input_ids))


def _edit_images(request: Request, branch: Branch) -> dict[str, Any]:
    """Return the pixel inputs after the branch's edit of pixels or of pictures."""
    pixels = {name: value for name, value in request.inputs.items() if anatomy.is_pixels(name, value)}
    if branch.picture is not None:
        return _edit_pictures(request, branch, pixels)
    assert branch.pixels is not None
    if not pixels:
        raise StrategyRefused(f"Branch {branch.key!r} edits pixels, but the images come already encoded.")
    layouts = _read_layouts(request, pixels)
    return {
        name: images.edit_images(value, layouts[name], request.config, branch.pixels, branch.seed)
        for name, value in pixels.items()
    }


def _read_layouts(request: Request, pixels: Mapping[str, Tensor]) -> dict[str, PixelLayout]:
    layouts = {}
    for name, value in pixels.items():
        tokens = prompts.count_placeholders(request, of_videos=anatomy.is_video_input(name))
        if request.has_tiles and request.processor is None:  # what stands apart may be tiles of one image
            tokens = [[sum(row)] if row else [] for row in tokens]
        layouts[name] = read_layout(name, value, request.inputs, tokens)
    return layouts


def _edit_pictures(request: Request, branch: Branch, pixels: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the pixel inputs of edited pictures: of those remembered, or of those recovered from the pixels."""
    assert branch.picture is not None
    if request.pictures is not None:
        if request.pictures.missing:
            raise StrategyRefused(f"Branch {branch.key!r} edits pictures. {request.pictures.missing}")
        edited = images.edit_pictures(request.pictures.pictures, branch.picture, branch.seed)
        processed = dict(request.pictures.process(edited))
        processed |= {
            name: fit_tiles(processed[name], value.shape[1]) for name, value in pixels.items() if value.ndim > 1
        }
        _check_layout(branch, request.inputs, processed)
        return {name: processed[name].to(value.device, value.dtype) for name, value in pixels.items()}
    if request.processor is None:
        raise ProcessorNeeded(
            f"Branch {branch.key!r} edits pictures, which needs the processor: Guard(model, processor)."
        )
    if isinstance(branch.picture, tuple):
        raise StrategyRefused(
            f"Branch {branch.key!r} edits each picture in its own way, so the pictures must be known: make the inputs with "
            "guard.inputs, and leave out edits of pixels before it."
        )
    layouts = _read_layouts(request, pixels)
    return {
        name: images.edit_recovered(value, layouts[name], request.processor, branch.picture, branch.seed)
        for name, value in pixels.items()
    }


def _check_layout(branch: Branch, inputs: Mapping[str, Any], processed: Mapping[str, Any]) -> None:
    """Refuse edited pictures whose pixels do not lie as those of main do."""
    for name, value in inputs.items():
        if not is_about_pixels(name, value) or name not in processed:
            continue
        edited = processed[name].to(value.device)
        if edited.shape != value.shape or not (anatomy.is_pixels(name, value) or torch.equal(edited, value)):
            raise StrategyRefused(f"Branch {branch.key!r} changes the size of a picture: its {name} is another one.")


def _mask_images(request: Request) -> Tensor:
    mask = request.image_mask
    if not bool(mask.any()) or any(name in request.inputs for name in prompts.LOOKS):
        raise ModelRefused("This model does not place images among the prompt tokens, so they cannot be masked there.")
    return request.attention_mask.masked_fill(mask, 0)
