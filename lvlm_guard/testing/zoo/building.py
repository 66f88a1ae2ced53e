"""Tiny models of a type, and inputs for them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
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
from lvlm_guard.testing.zoo.recipes import RECIPES, Recipe
from lvlm_guard.testing.zoo.shrinking import merge, rope_sections, shrink

TYPES: tuple[str, ...] = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
"""Model types that transformers maps image and text to text, in its order."""
PLACES = torch.cartesian_prod(torch.arange(1.0, 5.0), torch.arange(1.0, 5.0))
"""Row and column of 16 patches, counted from 1."""
PATCHES, GRID, PICTURE = 16, [[1, 4, 4]], (1, 3, 16, 16)


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
        self.accepted = set(inspect.signature(self.model.forward).parameters)
        self.fences = _image_fences(self.model.config.to_dict())
        self.image_tokens = self._image_tokens()

    def row(self, text: int = 6, seed: int = 0) -> dict[str, Tensor]:
        """Return inputs of one prompt: two text tokens, the image, `text` text tokens; drawn from `seed`."""
        draw = torch.Generator().manual_seed(seed)
        before, after = (torch.randint(5, 60, (1, size), generator=draw) for size in (2, text))
        ids = torch.cat([before, torch.tensor([self.image_tokens], dtype=torch.long), after], dim=1)
        return self.complete(ids, self.draw_image(draw))

    def complete(self, ids: Tensor, image: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs of prompts `[rows, length]` without padding and what belongs to their images."""
        if self.recipe.text != "input_ids":
            return {self.recipe.text: ids, **image}
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            **image,
            **self.per_token(ids, has_image=bool(image)),
        }

    def per_token(self, ids: Tensor, *, has_image: bool) -> dict[str, Tensor]:
        """Return the inputs that go along with the token ids, as far as the model takes them."""
        placeholders = ids == IMAGE_TOKEN
        types = dict.fromkeys(("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"), placeholders.long())
        types["image_embeds_position_mask"] = placeholders
        if has_image:
            types["cross_attention_mask"] = torch.ones(*ids.shape, 1, 1, dtype=torch.long)
            types["image_attention_mask"] = torch.ones(*ids.shape, 1, dtype=torch.long)
        types["bbox"] = torch.zeros(*ids.shape, 4)
        return {name: value for name, value in types.items() if name in self.accepted}

    def draw_image(self, draw: torch.Generator) -> dict[str, Tensor]:
        """Return the model inputs of one image."""
        layout = self.recipe.images if self.recipe.images is not None else self._common_layout()
        image = {
            name: torch.randn(value, generator=draw) if isinstance(value, tuple) else torch.tensor(value)
            for name, value in layout.items()
        }
        if "flattened_patches" in image:
            image["flattened_patches"][..., :2] = PLACES
        return image

    def _common_layout(self) -> dict[str, Any]:
        if is_ready(self.name, self.recipe):
            return _known_layout(ARCHITECTURES[self.name])
        if "image_grid_thw" in self.accepted:
            return {"pixel_values": (PATCHES, self._patch_width()), "image_grid_thw": GRID}
        sizes = {"image_sizes": [[16, 16]]} if "image_sizes" in self.accepted else {}
        return {"pixel_values": PICTURE, **sizes}

    def _patch_width(self) -> int:
        vision = self.model.config.vision_config
        frames = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None) or 1
        return int(3 * frames * vision.patch_size**2)

    def _image_tokens(self) -> list[int]:
        if self.recipe.prompt is not None:
            return list(self.recipe.prompt)
        if is_ready(self.name, self.recipe):
            return placeholders(self.name)
        image = [IMAGE_TOKEN] * self._count_features()
        opening, closing = ([fence] if fence in self.fences else [] for fence in (VISION_START, VISION_END))
        return [*opening, *image, *closing]

    @torch.no_grad()
    def _count_features(self) -> int:
        """How many tokens the model puts in place of one image."""
        image = self.draw_image(torch.Generator().manual_seed(0))
        owners: tuple[Any, ...] = (getattr(self.model, "model", None), self.model)
        encode = next(owner.get_image_features for owner in owners if hasattr(owner, "get_image_features"))
        accepted = inspect.signature(encode).parameters
        encoded = encode(**{name: value for name, value in image.items() if name in accepted})
        features = getattr(encoded, "pooler_output", None)
        features = encoded.last_hidden_state if features is None else features
        if isinstance(features, Tensor):
            return features.shape[:-1].numel()
        return sum(part.shape[:-1].numel() for part in features)


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


def build_model(name: str, recipe: Recipe) -> Any:
    """Return the tiny model of a type in eval mode and fp32, with weights that let image and prompt matter."""
    if is_ready(name, recipe):
        return tiny(name)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name])
        rope = {} if "rope_parameters" in recipe.changes.get("text_config", {}) else rope_sections(model_class)
        config = shrink(CONFIG_MAPPING[name](), merge(rope, recipe.changes))
        model = model_class(config).eval()
        boost(model)
    for part in model.modules():
        settings = getattr(part, "generation_config", None)
        if settings is not None:
            settings.update(eos_token_id=None, forced_eos_token_id=None, pad_token_id=0, bos_token_id=1)
    return model
