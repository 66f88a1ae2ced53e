"""Tiny models of a type, and inputs for them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lvlm_guard.testing.tiny import (
    ARCHITECTURES,
    IMAGE_TOKEN,
    VISION_END,
    VISION_START,
    Tiny,
    boost,
    placeholders,
    tiny,
)
from lvlm_guard.testing.zoo.naming import NamedTokens
from lvlm_guard.testing.zoo.recipes import RECIPES, Recipe
from lvlm_guard.testing.zoo.shrinking import FILM_END, FILM_START, VIDEO_TOKEN, merge, rope_sections, shrink

TYPES: tuple[str, ...] = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
"""Model types that transformers maps image and text to text, in its order."""
PLACES = torch.cartesian_prod(torch.arange(1.0, 5.0), torch.arange(1.0, 5.0))
"""Row and column of 16 patches, counted from 1."""
PATCHES, GRID, PICTURE = 16, [[1, 4, 4]], (1, 3, 16, 16)
FRAMES, FRAME_GRID = 2, [[2, 4, 4]]
SECONDS = {"<0.5 seconds>": 120, "<2.5 seconds>": 121}
"""Tokens that say when a frame was taken."""
INDICES = {"image_token_pooling", "video_token_pooling"}
PIXELS = {"pixel_values", "pixel_values_videos"}
STRIP = 4
"""A picture that is so much wider than high is laid out as its patches side by side."""
BETWEEN = 9
"""Text token between two images of a prompt."""


class Specimen:
    """The tiny model of one type, and prompts for it.

    Args:
        name: One of `TYPES`.

    Raises:
        LookupError: No model of this type is built; the message says why.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.recipe = RECIPES.get(name, Recipe())
        if self.recipe.skipped:
            raise LookupError(self.recipe.skipped)
        self.model = build_model(name, self.recipe)
        words = SECONDS if self.recipe.apart else self.recipe.words
        self.processor = None if words is None else NamedTokens(words, self.recipe.names)
        self.accepted = set(inspect.signature(self.model.forward).parameters)
        self.fences = _image_fences(self.model.config.to_dict())
        self.image_tokens = self._image_tokens()

    @property
    def takes_videos(self) -> bool:
        """Whether the model's forward takes videos beside images."""
        return "pixel_values_videos" in self.accepted

    def row(self, text: int = 6, seed: int = 0, images: int = 1) -> dict[str, Tensor]:
        """Return inputs of one prompt, drawn from `seed`: two text tokens, images with a token between two, `text` text tokens."""
        draw = torch.Generator().manual_seed(seed)
        before, after = (torch.randint(5, 60, (1, size), generator=draw) for size in (2, text))
        spans = [([BETWEEN] if index else []) + self.image_tokens for index in range(images)]
        ids = torch.tensor([[token for span in spans for token in span]], dtype=torch.long).reshape(1, -1)
        opening = torch.tensor([self.recipe.opening], dtype=torch.long)
        ids = torch.cat([opening, before, ids, after], dim=1)
        return self.complete(ids, self._join_images([self.draw_image(draw) for _ in range(images)]), images)

    def video_row(self, text: int = 6, seed: int = 0) -> dict[str, Tensor]:
        """Return inputs of one prompt with a video, drawn from `seed`, in place of the image."""
        draw = torch.Generator().manual_seed(seed)
        before, after = (torch.randint(5, 60, (1, size), generator=draw) for size in (2, text))
        video = _draw(self._video_layout(), draw)
        ids = torch.cat([before, torch.tensor([self._video_tokens(video)], dtype=torch.long), after], dim=1)
        return self.complete(ids, video)

    def complete(self, ids: Tensor, image: Mapping[str, Tensor], images: int = 1) -> dict[str, Tensor]:
        """Return the inputs of prompts `[rows, length]` without padding and what belongs to their images."""
        if self.recipe.text != "input_ids":
            return {self.recipe.text: ids, **image}
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            **image,
            **self.per_token(ids, images=images if image else 0),
            **self._look_away(ids, images),
        }

    def _look_away(self, ids: Tensor, images: int) -> dict[str, Tensor]:
        """Return the mask of a prompt without an image, of models that take no text alone: no token looks at the empty picture."""
        name = "image_attention_mask"
        return {name: torch.zeros(*ids.shape, 1, dtype=torch.long)} if name in self.accepted and not images else {}

    def per_token(self, ids: Tensor, *, images: int) -> dict[str, Tensor]:
        """Return the inputs that go along with the token ids, as far as the model takes them."""
        placeholders = ids == IMAGE_TOKEN
        is_filmed = (ids == FILM_START).cumsum(1) > (ids == FILM_END).cumsum(1)
        is_video = (ids == VIDEO_TOKEN) | (placeholders & is_filmed)
        placeholders = placeholders & ~is_filmed
        types = dict.fromkeys(("token_type_ids", "moe_mm_token_type_ids"), (placeholders | is_video).long())
        types["mm_token_type_ids"] = placeholders.long() + 2 * is_video
        types["image_embeds_position_mask"] = placeholders
        if images:
            types["cross_attention_mask"] = torch.ones(*ids.shape, images, 1, dtype=torch.long)
            types["image_attention_mask"] = torch.ones(*ids.shape, images, dtype=torch.long)
        types["bbox"] = torch.zeros(*ids.shape, 4)
        return {name: value for name, value in types.items() if name in self.accepted}

    def decoding(self, inputs: Mapping[str, Tensor]) -> Any:
        """Return the module whose generate takes the inputs: an inner one of some models where there is no image."""
        has_pixels = any("pixel" in name or "patches" in name for name in inputs)
        return (
            self.model if has_pixels or not self.recipe.text_alone else self.model.get_submodule(self.recipe.text_alone)
        )

    def draw_image(self, draw: torch.Generator) -> dict[str, Tensor]:
        """Return the model inputs of one image."""
        image = _draw(self.recipe.images if self.recipe.images is not None else self._common_layout(), draw)
        if "flattened_patches" in image:
            image["flattened_patches"][..., :2] = PLACES
        return image

    def _join_images(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the model inputs of the images of one prompt; what belongs to its text comes once."""
        if not images and "image_attention_mask" in self.accepted:  # as its processor does, for want of text alone
            drawn = self.draw_image(torch.Generator().manual_seed(0))
            return {name: torch.zeros_like(value) for name, value in drawn.items()}
        names = images[0] if images else ()
        axis = int(self.recipe.per_row)
        return {
            name: images[0][name]
            if name.startswith("qformer")
            else join_images(name, [each[name] for each in images], axis)
            for name in names
        }

    def _common_layout(self) -> dict[str, Any]:
        if is_ready(self.name, self.recipe):
            return _known_layout(ARCHITECTURES[self.name])
        if "image_grid_thw" in self.accepted:
            return {"pixel_values": (PATCHES, self._patch_width()), "image_grid_thw": GRID}
        sizes = {"image_sizes": [[16, 16]]} if "image_sizes" in self.accepted else {}
        beside_videos = "pixel_values" not in self.accepted and "pixel_values_images" in self.accepted
        return {"pixel_values_images" if beside_videos else "pixel_values": PICTURE, **sizes}

    def _video_layout(self) -> Mapping[str, Any]:
        if self.recipe.videos is not None:
            return self.recipe.videos
        if "video_grid_thw" in self.accepted:
            image = self.recipe.images if self.recipe.images is not None else self._common_layout()
            patches = image["pixel_values"][1:] if "image_grid_thw" in image else (self._patch_width(),)
            return {"pixel_values_videos": (FRAMES * PATCHES, *patches), "video_grid_thw": FRAME_GRID}
        return {"pixel_values_videos": (1, FRAMES, *PICTURE[1:])}

    def _video_tokens(self, video: Mapping[str, Tensor]) -> list[int]:
        if self.recipe.filmed is not None:
            return list(self.recipe.filmed)
        opening, closing = ([fence] if fence in self.fences else [] for fence in (VISION_START, VISION_END))
        features = self._count_features(video, "get_video_features")
        if not self.recipe.apart:
            return [*opening, *[VIDEO_TOKEN] * features, *closing]
        frame = [*opening, *[VIDEO_TOKEN] * (features // FRAMES), *closing]
        return [token for time in SECONDS.values() for token in (time, *frame)]

    def _patch_width(self) -> int:
        vision = self.model.config.vision_config
        frames = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None) or 1
        return int(3 * frames * vision.patch_size**2)

    def _image_tokens(self) -> list[int]:
        if self.recipe.prompt is not None:
            return list(self.recipe.prompt)
        if is_ready(self.name, self.recipe):
            return placeholders(self.name)
        drawn = self.draw_image(torch.Generator().manual_seed(0))
        image = [IMAGE_TOKEN] * self._count_features(drawn, "get_image_features")
        opening, closing = ([fence] if fence in self.fences else [] for fence in (VISION_START, VISION_END))
        return [*opening, *image, *closing]

    @torch.no_grad()
    def _count_features(self, image: Mapping[str, Tensor], method: str) -> int:
        """How many tokens the model puts in place of one image or video, which one of its methods encodes."""
        owners: tuple[Any, ...] = (getattr(self.model, "model", None), self.model)
        encode = next(getattr(owner, method) for owner in owners if hasattr(owner, method))
        accepted = inspect.signature(encode).parameters
        encoded = encode(**{name: value for name, value in image.items() if name in accepted})
        features: Any = (
            encoded  # older versions return the features themselves, or them and what goes into deeper layers
        )
        if not isinstance(encoded, (Tensor, list, tuple)):
            pooled = getattr(encoded, "pooler_output", None)  # no field of some outputs
            features = encoded.last_hidden_state if pooled is None else pooled
        elif not isinstance(encoded[0], Tensor):
            features = encoded[0]
        if isinstance(features, Tensor):
            return features.shape[:-1].numel()
        return sum(part.shape[:-1].numel() for part in features)


def _draw(layout: Mapping[str, Any], draw: torch.Generator) -> dict[str, Tensor]:
    return {
        name: torch.randn(value, generator=draw) if isinstance(value, tuple) else torch.tensor(value)
        for name, value in layout.items()
    }


def join_images(name: str, values: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Return one model input of several images: pictures side by side have one axis for all their patches."""
    if name in INDICES:  # into the patches of all images
        patches = int(values[0].max()) + 1
        return torch.cat([value + patches * place for place, value in enumerate(values)])
    return torch.cat(list(values), dim=-1 if is_strip(name, values[0]) else min(axis, values[0].ndim - 1))


def is_strip(name: str, value: Tensor) -> bool:
    """Return whether an input is a picture laid out as its patches side by side."""
    return name in PIXELS and value.shape[0] == 1 and value.shape[-1] > STRIP * value.shape[-2]


def _image_fences(config: Mapping[str, Any]) -> set[int]:
    """Return the ids of the tokens that a config puts round an image, whatever it calls them."""
    named = {name: value for name, value in config.items() if name.startswith(("image", "vision", "boi", "eoi"))}
    return {value for value in named.values() if value in (VISION_START, VISION_END)}


def _known_layout(entry: Tiny) -> dict[str, Any]:
    """Return the layout of one image of an architecture of `tiny`."""
    packed = len(entry.pixels) == 2  # noqa: PLR2004 - a matrix of patches
    numbers = {name: [value] for name, value in entry.extra.items() if not isinstance(value, str)}
    return {"pixel_values": entry.pixels if packed else (1, *entry.pixels), **numbers}


def is_ready(name: str, recipe: Recipe) -> bool:
    """Return whether a type is taken as `tiny` builds it."""
    return name in ARCHITECTURES and not recipe.changes


def _default_config(name: str) -> Any:
    """Return the config of a type as it is by default; older versions have none of two models put together."""
    if name == "vision-encoder-decoder":
        parts = transformers.ViTConfig(), transformers.BertConfig()
        return transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    return CONFIG_MAPPING[name]()


def build_model(name: str, recipe: Recipe) -> Any:
    """Return the tiny model of a type in eval mode and fp32, with weights that let image and prompt matter."""
    if is_ready(name, recipe):
        return tiny(name)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name])
        rope = {} if "rope_parameters" in recipe.changes.get("text_config", {}) else rope_sections(model_class)
        config = shrink(_default_config(name), merge(rope, recipe.changes))
        model = model_class(config).eval()
        boost(model)
        for ending, factor in recipe.scaled.items():
            for parameter in (value for path, value in model.named_parameters() if path.endswith(ending)):
                parameter.data.mul_(factor)
    for part in model.modules():
        settings = getattr(part, "generation_config", None)
        if settings is not None:
            settings.update(eos_token_id=None, forced_eos_token_id=None, pad_token_id=0, bos_token_id=1)
    return model
