"""What differs by type from a default config made tiny and from the commonest inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PATCH = (16, 3, 4, 4)
GRID = [[1, 4, 4]]


@dataclass(frozen=True)
class Recipe:
    """How the tiny model of a type and its inputs are made.

    Args:
        changes: Merged over the shrunk config, nested as it is.
        images: Model inputs of one image by name: the shape of floats as a tuple, or whole numbers as nested lists. None
            is one picture `[1, 3, 16, 16]`, or packed patches and their grid where the model takes a grid.
        prompt: Token ids that stand for the image; None is fences round as many placeholders as there are features.
        skipped: Why no model is built; empty where one is.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] | None = None
    prompt: tuple[int, ...] | None = None
    skipped: str = ""


RECIPES: dict[str, Recipe] = {
    "aria": Recipe({"projector_patch_to_query_dict": {16: 4}, "max_value_projector_patch_to_query_dict": 4}),
    "idefics2": Recipe(images={"pixel_values": (1, 1, 3, 16, 16), "pixel_attention_mask": [[[[1] * 16] * 16]]}),
    "kimi_k25": Recipe(images={"pixel_values": PATCH, "image_grid_thw": GRID}),
    "diffusion_gemma": Recipe(skipped="It fills blocks by diffusion and has no autoregressive generate."),
    "evolla": Recipe(skipped="It reads proteins, not images."),
    "mistral4": Recipe(skipped="It takes text alone."),
    "pi0": Recipe(skipped="It drives robots and has no generate."),
}
"""Recipes by model type; a type without one is built as its default config and its signature say."""
