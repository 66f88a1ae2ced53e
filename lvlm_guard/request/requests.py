"""One request to generate, split into model inputs and settings, and what each branch makes of the inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from lvlm_guard import anatomy
from lvlm_guard.errors import InputError, ModelRefused, ModeRefused, ProcessorNeeded, StrategyRefused
from lvlm_guard.request import images, prompts
from lvlm_guard.strategy.branches import Branch, InputEdit

SETTINGS = (
    frozenset(vars(GenerationConfig()))
    | frozenset(inspect.signature(GenerationMixin.generate).parameters)
    | {"tokenizer", "assistant_tokenizer"}
)


@dataclass
class Request:
    """A call of generate.

    Args:
        inputs: Model inputs by name; `input_ids` is always there.
        settings: Everything else: the generation config and its overrides, processors, streamer, assistant.
        config: The model's config.
        processor: The processor, or None.
        pictures: The pictures that the inputs were made of and how to process pictures like them, if remembered.
        defaults: The model's own generation config.
    """

    inputs: dict[str, Any]
    settings: dict[str, Any]
    config: Any
    processor: Any = None
    pictures: Pictures | None = None
    defaults: Any = None
    input_ids: Tensor = field(init=False)
    attention_mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        ids = self.inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise ModeRefused(
                "A guarded generate needs input_ids: pass the processor's full output, generate(**inputs)."
            )
        self.input_ids = ids
        mask = self.inputs.get("attention_mask")
        self.attention_mask = _inferred_mask(ids, self.config) if mask is None else mask
        decoder_only = not getattr(self.config, "is_encoder_decoder", False)
        if decoder_only and bool((self.attention_mask[:, -1] == 0).any()):
            raise InputError("The batch is padded on the right. Set processor.tokenizer.padding_side = 'left'.")

    def setting(self, name: str) -> Any:
        """A setting of the loop as generate resolves it: keyword, given config, the model's config."""
        sources = (self.settings.get("generation_config"), self.defaults)
        found = (self.settings.get(name), *(getattr(source, name, None) for source in sources))
        return next((value for value in found if value is not None), None)

    @property
    def without_cache(self) -> dict[str, Any]:
        """Model inputs but for a cache of the user's, which belongs to main alone."""
        return {name: value for name, value in self.inputs.items() if name != "past_key_values"}

    @property
    def has_image(self) -> bool:
        """Whether the request brings pixels or already encoded images."""
        return any(anatomy.is_pixels(*item) or item[0] == "mm_encoder_outputs" for item in self.inputs.items())

    @property
    def image_mask(self) -> Tensor:
        """True at image placeholders `[batch, length]`."""
        return anatomy.image_mask(self.config, self.input_ids)


@dataclass(frozen=True)
class Pictures:
    """Pictures behind a batch of inputs, and a function that processes pictures like them into pixel inputs."""

    pictures: tuple[Any, ...]
    process: Callable[[list[Any]], Mapping[str, Any]]


def bind(generate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Bring positional arguments of a call of `generate` under their names."""
    parameters = inspect.signature(generate).parameters
    positional = [
        name for name, one in parameters.items() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ] or ["inputs"]
    if len(args) > len(positional):
        raise InputError(f"generate takes {len(positional)} positional arguments, got {len(args)}.")
    named = dict(zip(positional, args, strict=False))
    twice = set(named) & set(kwargs)
    if twice:
        raise InputError(f"generate got {min(twice)!r} twice, by position and by name.")
    return {**named, **kwargs}


def split(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the arguments of generate into model inputs and settings; `inputs` counts as `input_ids`."""
    inputs = {name: value for name, value in arguments.items() if name not in SETTINGS and value is not None}
    settings = {name: value for name, value in arguments.items() if name in SETTINGS and name != "inputs"}
    if arguments.get("inputs") is not None:
        inputs.setdefault("input_ids", arguments["inputs"])
    return inputs, settings


def branch_inputs(request: Request, branch: Branch, encoded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Model inputs of a branch.

    Args:
        request: The user's request.
        branch: What differs.
        encoded: Main's encoded images, which branches with unchanged pixels share; None where the model cannot.

    Returns:
        Inputs for `generate`, left-padded anew when the prompt changed.
    """
    inputs = {**request.without_cache, "attention_mask": request.attention_mask}
    if branch.pixels is not None or branch.picture is not None:
        inputs.update(_edited_pixels(request, branch))
    elif encoded is not None and not branch.drops_image:
        inputs = share_encoded(inputs, _edited_features(branch, encoded))
    elif branch.features is not None:
        raise ModelRefused(f"Branch {branch.key!r} edits image features, which this model or version does not take.")
    if branch.image == "masked":
        inputs["attention_mask"] = _mask_images(request)
    if branch.drops_image:
        inputs = {name: value for name, value in inputs.items() if not anatomy.is_image_input(name)}
    if branch.drops_image or branch.tokens:
        inputs.update(prompts.edit(request, branch, inputs))
    return inputs


def edited(request: Request, edits: Sequence[InputEdit]) -> Request:
    """The request after edits of main's own prompt and pictures, in their order."""
    for edit in edits:
        branch = Branch("edited input", edit.pixels, edit.picture, tokens=edit.tokens, seed=edit.seed, inside=True)
        refuse_missing_image(request, branch)
        inputs = branch_inputs(request, branch, None)
        if request.inputs.get("past_key_values") is not None:
            inputs["past_key_values"] = request.inputs["past_key_values"]
        settings = _longer(request, inputs["input_ids"].shape[1] - request.input_ids.shape[1])
        pictures = _pictures_after(request.pictures, edit)
        request = Request(inputs, settings, request.config, request.processor, pictures, request.defaults)
    return request


def _pictures_after(pictures: Pictures | None, edit: InputEdit) -> Pictures | None:
    """What later edits of pictures start from; pictures whose pixels were edited are recovered from those."""
    if pictures is None or edit.pixels is not None:
        return None
    if edit.picture is None:
        return pictures
    return Pictures(tuple(images.edit_pictures(pictures.pictures, edit.picture, edit.seed)), pictures.process)


def _longer(request: Request, tokens: int) -> dict[str, Any]:
    """Settings whose total lengths count a prompt that grew by some tokens."""
    changed = dict(request.settings)
    for name in ("max_length", "min_length"):
        value, unset = request.setting(name), getattr(GenerationConfig(), name)
        if name in request.settings or value not in (None, unset):
            changed[name] = None if value is None else value + tokens
    return changed


def refuse_missing_image(request: Request, branch: Branch) -> None:
    """Raise `StrategyRefused` when a branch of images meets a request without any."""
    if branch.needs_image and not request.has_image:
        raise StrategyRefused(
            f"Branch {branch.key!r} needs an image, but generate() got no pixel_values. "
            "Pass the processor's full output: guard.generate(**inputs)."
        )


def share_encoded(inputs: Mapping[str, Any], encoded: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs with encoded images in place of pixels."""
    kept = {name: value for name, value in inputs.items() if not anatomy.is_pixels(name, value)}
    return {**kept, "mm_encoder_outputs": images.copy_encoded(encoded)}


def _edited_features(branch: Branch, encoded: Mapping[str, Any]) -> Mapping[str, Any]:
    return encoded if branch.features is None else images.edit_features(encoded, branch.features, branch.seed)


def _edited_pixels(request: Request, branch: Branch) -> dict[str, Any]:
    pixels = {name: value for name, value in request.inputs.items() if anatomy.is_pixels(name, value)}
    if branch.picture is not None:
        return _edited_pictures(request, branch, pixels)
    assert branch.pixels is not None
    if not pixels:
        raise StrategyRefused(f"Branch {branch.key!r} edits pixels, but the images come already encoded.")
    grid = request.inputs.get(anatomy.PACKED_GRID)
    return {
        name: images.edit_pixels(name, value, grid, request.config, branch.pixels, branch.seed)
        for name, value in pixels.items()
    }


def _edited_pictures(request: Request, branch: Branch, pixels: Mapping[str, Tensor]) -> dict[str, Any]:
    assert branch.picture is not None
    if request.pictures is not None:
        edited = images.edit_pictures(request.pictures.pictures, branch.picture, branch.seed)
        fresh = request.pictures.process(edited)
        return {name: fresh[name].to(value.device, value.dtype) for name, value in pixels.items()}
    if request.processor is None:
        raise ProcessorNeeded(
            f"Branch {branch.key!r} edits pictures, which needs the processor: Guard(model, processor)."
        )
    return {
        name: images.edit_recovered(value, request.processor, branch.picture, branch.seed)
        for name, value in pixels.items()
    }


def _mask_images(request: Request) -> Tensor:
    mask = request.image_mask
    if not bool(mask.any()) or "cross_attention_mask" in request.inputs:
        raise ModelRefused("This model does not place images among the prompt tokens, so they cannot be masked there.")
    return request.attention_mask.masked_fill(mask, 0)


def _inferred_mask(ids: Tensor, config: Any) -> Tensor:
    """Attend everywhere but at leading padding, as generate infers it from the ids."""
    pad = getattr(config.get_text_config(decoder=True), "pad_token_id", None)
    eos = getattr(config.get_text_config(decoder=True), "eos_token_id", None)
    if pad is None or pad == eos or (isinstance(eos, list) and pad in eos) or not bool((ids == pad).any()):
        return torch.ones_like(ids)
    return (ids != pad).long()
